"""What an agent can wait for: time, signals, its children; each once, however often the run is put down meanwhile."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.contracts import child_task_id, new_task_id
from shared.errors import BadInput, ChildFailed, CrossShard, LLMRateLimited, TooLarge, WaitTimeout
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.retry import Retry
from shared.ledger.suspension import Suspended
from tests.fakes.fake_world import FakeWorld
from tests.fakes.hand_loop import at_once
from workers.agents.children import Child
from workers.agents.run import Run


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


def done(output: Any) -> dict[str, Any]:
    return {"state": "succeeded", "output": output, "error": None}


def waiting_for(run: Run) -> Any:
    suspension = run._journal.suspension
    assert suspension is not None
    return suspension.row()["waiting_for"]


def test_a_short_sleep_is_sat_out_and_a_long_one_is_not(world: FakeWorld) -> None:
    async def main() -> None:
        run = world.run()
        await run.sleep(3)
        assert round(asyncio.get_running_loop().time(), 3) == 3
        with pytest.raises(Suspended):
            await run.sleep(3600)
        assert waiting_for(run) == {"kind": "sleep"}

    at_once(main())


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e9, "soon", None])
async def test_a_wait_that_means_nothing_is_refused(world: FakeWorld, seconds: Any) -> None:
    with pytest.raises(BadInput, match=r"a wait must be from 0 to .* seconds \(a year\)"):
        await world.run().sleep(seconds)


async def test_each_wait_for_a_signal_takes_the_next_one_of_its_name_however_often_the_run_goes_on(
    world: FakeWorld,
) -> None:
    task = uuid4()
    first = world.run(task)
    signals = world.runs(task).signals
    with pytest.raises(Suspended):
        await first.wait_for("ok")
    assert waiting_for(first) == {"kind": "signal", "signals": ("ok",)}
    signals["ok"] += [1, 2]
    signals["other"].append(9)
    for attempt in (2, 3):
        run = world.run(task, attempt=attempt)
        assert [await run.wait_for("ok"), await run.wait_for("other"), await run.wait_for("ok")] == [1, 9, 2]


def test_a_signal_that_does_not_come_in_time_is_told_by_its_name(world: FakeWorld) -> None:
    async def main() -> None:
        with pytest.raises(WaitTimeout, match="signal 'ok' did not come within 2 s") as caught:
            await world.run().wait_for("ok", timeout_s=2)
        assert caught.value.context == {"signal": "ok"}

    at_once(main())


async def test_a_child_is_a_task_of_its_own_with_the_family_s_tenant_priority_and_deadline(world: FakeWorld) -> None:
    task, deadline = uuid4(), datetime.now(UTC) + timedelta(seconds=60)
    run = world.run(task, tenant="acme", priority="batch", deadline_at=deadline)
    child = await run.spawn("kid", {"n": 1}, deadline_s=3600, session="s", max_attempts=5)
    message = world.runs(task).children[child.id]
    assert child == Child(child_task_id(task, "kid", 0), "kid")
    assert (message.agent, message.kwargs, message.id) == ("kid", {"n": 1}, child.id)
    fleet = message.fleet
    assert (fleet.tenant, fleet.priority, fleet.session, fleet.max_attempts) == ("acme", "batch", "s", 5)
    assert (fleet.parent_id, fleet.root_agent, fleet.deadline_at) == (task, "a", deadline)
    assert [one.id for one in world.homes[task].published] == [child.id]


async def test_with_several_shards_a_child_cannot_have_a_session_of_another_bucket() -> None:
    world, task = FakeWorld(is_sharded=True), new_task_id("acme", "mine")
    run = world.run(task, tenant="acme", session="mine")
    with pytest.raises(CrossShard, match="session 'other' may be on another shard"):
        await run.spawn("kid", session="other")
    assert world.ledger[task].history == []
    children = [await run.spawn("kid", session="mine"), await run.spawn("kid")]
    assert list(world.runs(task).children) == [one.id for one in children]


async def test_a_grandchild_counts_against_the_first_agent_of_the_family(world: FakeWorld) -> None:
    task = uuid4()
    child = await world.run(task, root_agent="first").spawn("kid", priority="interactive")
    fleet = world.runs(task).children[child.id].fleet
    assert (fleet.root_agent, fleet.priority) == ("first", "interactive")


async def test_a_resumed_run_means_the_same_children_and_starts_none_twice(world: FakeWorld) -> None:
    task = uuid4()
    family = []
    for attempt in (1, 2):
        run = world.run(task, attempt=attempt)
        family.append([await run.spawn(agent) for agent in ("kid", "pet", "kid")])
    assert family[0] == family[1]
    assert len({one.id for one in family[0]}) == 3
    assert len(world.homes[task].published) == 3


async def test_a_child_that_starts_later_is_left_to_the_ledger_until_then(world: FakeWorld) -> None:
    task = uuid4()
    child = await world.run(task).spawn("kid", delay_s=3600)
    starts_at = world.runs(task).children[child.id].fleet.available_at
    assert starts_at is not None
    assert starts_at > datetime.now(UTC) + timedelta(seconds=3500)
    assert world.homes[task].published == []


async def test_children_of_a_tenant_with_a_long_queue_wait_for_their_turn_in_the_ledger(world: FakeWorld) -> None:
    task = uuid4()
    run = world.run(task)
    world.runs(task).is_crowded = True
    first, second = await run.spawn("kid"), await run.spawn("kid")
    assert [one.id for one in world.homes[task].published] == [first.id]
    assert world.runs(task).held == [second.id]
    assert world.homes[task].hurries == 1


@pytest.mark.parametrize("agent", ["No Agent", "", "a\x00b"])
async def test_a_child_that_no_agent_could_be_is_refused(world: FakeWorld, agent: str) -> None:
    with pytest.raises(BadInput, match="agent name"):
        await world.run().spawn(agent)


async def test_a_child_whose_input_is_too_large_is_refused_with_the_limit(world: FakeWorld) -> None:
    with pytest.raises(TooLarge, match=r"the input of agent 'kid' is \d+ bytes long as JSON, and the limit is"):
        await world.run().spawn("kid", {"text": "x" * LedgerKnobs().input_max_bytes})


async def test_a_run_waits_without_a_slot_until_every_child_has_ended_and_gets_their_outputs_in_order(
    world: FakeWorld,
) -> None:
    task = uuid4()
    run = world.run(task)
    children = [await run.spawn("kid", {"n": n}) for n in range(3)]
    runs = world.runs(task)
    runs.ended[children[2].id] = done("two")
    with pytest.raises(Suspended):
        await run.gather(children)
    assert waiting_for(run) == {"kind": "children", "ids": tuple(str(one.id) for one in children)}
    runs.ended |= {children[0].id: done("zero"), children[1].id: done({"one": 1})}
    for attempt in (2, 3):
        again = world.run(task, attempt=attempt)
        spawned = [await again.spawn("kid", {"n": n}) for n in range(3)]
        assert await again.gather(spawned) == ["zero", {"one": 1}, "two"]


async def family_of_two(world: FakeWorld, task: UUID) -> tuple[Run, list[Child]]:
    run = world.run(task)
    children = [await run.spawn("kid"), await run.spawn("pet")]
    error = {"code": "permanent", "message": "no luck"}
    world.runs(task).ended |= {
        children[0].id: done(1),
        children[1].id: {"state": "failed", "output": None, "error": error},
    }
    return run, children


async def test_a_child_that_failed_fails_the_gathering_with_its_error(world: FakeWorld) -> None:
    run, children = await family_of_two(world, uuid4())
    with pytest.raises(ChildFailed, match=f"child pet {children[1].id} failed: no luck") as caught:
        await run.gather(children)
    assert caught.value.context["error"]["code"] == "permanent"


async def test_a_gathering_may_take_failures_as_results(world: FakeWorld) -> None:
    run, children = await family_of_two(world, uuid4())
    output, failure = await run.gather(children, return_exceptions=True)
    assert output == 1
    assert isinstance(failure, ChildFailed)


async def test_a_child_that_was_cancelled_is_told_so(world: FakeWorld) -> None:
    task = uuid4()
    run = world.run(task)
    child = await run.spawn("kid")
    world.runs(task).ended[child.id] = {"state": "cancelled", "output": None, "error": None}
    with pytest.raises(ChildFailed, match=f"child kid {child.id} was cancelled"):
        await run.gather([child])


async def test_only_children_can_be_gathered(world: FakeWorld) -> None:
    with pytest.raises(BadInput, match=r"gather\(\) takes what `await run.spawn\(…\)` returned, not str"):
        await world.run().gather(["nobody"])  # type: ignore[list-item]


async def test_nobody_is_gathered_at_once(world: FakeWorld) -> None:
    assert await world.run().gather([]) == []


def test_an_agents_rule_to_retry_holds_for_steps_without_one_of_their_own() -> None:
    world = FakeWorld(LLMRateLimited("slow down", retry_after_s=1), "hello", LLMRateLimited("no", retry_after_s=1))

    async def main() -> None:
        run = world.run(retry=Retry(attempts=2, base_s=0.001))
        assert (await run.chat("why?")).text == "hello"
        with pytest.raises(LLMRateLimited):
            await run.chat("why?", retry=Retry(attempts=1))

    at_once(main())
    assert len(world.chat.requests) == 3


def test_a_question_that_is_cut_off_costs_at_least_what_was_sent() -> None:
    world, task = FakeWorld(), uuid4()
    world.chat.release, world.chat.token_price = asyncio.Event(), 0.5

    async def main() -> None:
        run = world.run(task)
        asking = asyncio.create_task(run.chat("a" * 40))
        await asyncio.sleep(1)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        assert (run.report()["input_tokens"], run.report()["cost"]) == (10, 5.0)

    at_once(main())
    assert world.ledger[task].steps["chat", 0]["usage"] == {
        "input_tokens": 10, "output_tokens": 0, "estimated": True, "cost": 5.0,
    }  # fmt: skip


async def test_the_report_tells_the_calls_in_doubt(world: FakeWorld) -> None:
    task = uuid4()
    first = world.run(task)
    first._journal.books_cuts = lambda: False

    async def cut() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await first.step("pay", cut)
    assert world.run(task, attempt=2).report()["in_doubt"] == 1
