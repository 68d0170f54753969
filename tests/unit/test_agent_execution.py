"""From claim to end with a worker of fakes: what is written, who is told, and what Celery hears."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from celery.exceptions import Ignore, SoftTimeLimitExceeded, TimeLimitExceeded
from prometheus_client import REGISTRY

from shared.contracts import TaskMessage
from shared.db.tokens import CausalToken, carrying, current, note
from shared.errors import BadInput, FleetError
from shared.ledger.group_commit import Key, Written
from shared.ledger.poll import Polled
from shared.ledger.retry import ONCE
from shared.ledger.runs import Claim
from shared.ledger.statements import Kind
from tests.fakes.fake_hold import TASK, FakeDelivery, FakeHold, executed, made
from tests.fakes.fake_ledger import FakeCommit, FakeRuns
from tests.fakes.hand_loop import at_once
from workers.agents.agent import AGENTS
from workers.agents.execution import execute, execute_polled
from workers.agents.pool import Delivery, current_delivery
from workers.agents.run import Run

PARENT = UUID(int=1)


@pytest.fixture(autouse=True)
def own_names() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    agents = dict(AGENTS)
    yield
    AGENTS.clear()
    AGENTS.update(agents)


@pytest.fixture
def hold() -> FakeHold:
    return FakeHold()


async def works(run: Run) -> str:
    await run.step("slow", asyncio.sleep, 10)
    return "out"


def test_a_task_is_claimed_accepted_run_and_ended_once(hold: FakeHold) -> None:
    assert executed(hold, made(works)) == "succeeded: 1 steps, 0 replayed"
    assert hold.kinds() == ["claim", "intent", "result", "finish"]
    row = hold.written("finish")
    assert (row["state"], row["output"], row["report"]["steps_executed"]) == ("succeeded", "out", 1)


def test_a_claim_that_this_worker_has_begun_already_is_a_duplicate(hold: FakeHold) -> None:
    hold.is_new = False
    assert isinstance(executed(hold, made(works)), Ignore)
    assert hold.kinds() == ["claim"]


def test_a_failure_is_written_and_told_to_celery(hold: FakeHold) -> None:
    async def fails(run: Run) -> None:
        raise ValueError("no luck")

    assert isinstance(executed(hold, made(fails)), ValueError)
    row = hold.written("finish")
    assert (row["state"], row["error"]["message"]) == ("failed", "ValueError: no luck")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_agent_that_wants_to_end_its_worker_ends_its_task(hold: FakeHold, error: BaseException) -> None:
    async def leaves(run: Run) -> None:
        raise error

    assert isinstance(executed(hold, made(leaves)), Exception)
    assert hold.written("finish")["state"] == "failed"


@pytest.mark.parametrize("error", [BadInput("not storable"), FleetError("the ledger's writer failed")])
def test_a_wait_that_cannot_be_written_ends_the_task_instead_of_leaving_it_running(
    hold: FakeHold, error: FleetError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> str:
        raise error

    async def waits(run: Run) -> None:
        await run.wait_for("go")

    monkeypatch.setattr(hold.runs, "suspend", refuses)
    assert executed(hold, made(waits)) is error
    row = hold.written("finish")
    assert (row["state"], row["error"]["message"]) == ("failed", error.message)


def test_an_output_that_is_not_json_is_the_agents_failure(hold: FakeHold) -> None:
    async def odd(run: Run) -> object:
        return object()

    assert "the agent's output is not" in str(executed(hold, made(odd)))
    assert hold.written("finish")["state"] == "failed"


def test_a_run_that_waits_is_put_down_with_its_report_and_is_no_event(hold: FakeHold) -> None:
    async def waits(run: Run) -> None:
        run.degradation.note("L2", "cached")
        await run.wait_for("ok", timeout_s=60)

    assert isinstance(executed(hold, made(waits), parent_id=PARENT), Ignore)
    row = hold.written("suspend")
    assert (row["state"], row["waiting_for"], row["wait_s"]) == ("waiting", {"kind": "signal", "signals": ["ok"]}, 60)
    assert (row["report"]["level"], row["report"]["reasons"]) == ("L2", ["cached"])
    assert (hold.returned, hold.family.woken) == ([], [])


@pytest.mark.parametrize("kind", ["gather", "group", "caught", "finally"])
def test_no_shape_of_agent_keeps_a_run_from_being_put_down(hold: FakeHold, kind: str) -> None:
    async def shaped(run: Run) -> str:
        if kind == "gather":
            await asyncio.gather(run.sleep(60), run.sleep(90))
        if kind == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(run.sleep(60))
                group.create_task(run.sleep(90))
        try:
            await run.sleep(60)
        except BaseException:
            if kind == "finally":
                raise ValueError("while tidying up") from None
        return "swallowed"

    assert isinstance(executed(hold, made(shaped)), Ignore)
    assert hold.written("suspend")["wait_s"] == pytest.approx(60)


def test_what_a_run_waited_for_and_that_came_meanwhile_lets_it_go_on_at_once(hold: FakeHold) -> None:
    hold.commit.becomes["suspend"] = "queued"
    executed(hold, made(lambda run: run.sleep(60)))
    assert [one.id for one in hold.returned] == [TASK]


def test_a_run_is_put_down_after_the_step_that_it_is_at(hold: FakeHold) -> None:
    async def two(run: Run) -> None:
        await run.step("first", asyncio.sleep, 10)
        await run.step("second", asyncio.sleep, 10)

    assert isinstance(executed(hold, made(two), put_down_at=3), Ignore)
    assert hold.kinds() == ["claim", "intent", "result", "suspend"]
    assert hold.written("suspend")["state"] == "queued"
    assert hold.written("result")["state"] == "done"


def test_work_that_outlives_the_agent_is_finished_before_the_run_is_put_down(hold: FakeHold) -> None:
    asked = ["old"]

    async def inner(run: Run) -> None:
        await asyncio.gather(run.step("quick", asyncio.sleep, 1, *asked), run.step("slow", asyncio.sleep, 10))

    async def outer(run: Run) -> None:
        await run.step("outer", inner_of(run))

    def inner_of(run: Run) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            await inner(run)

        return call

    one = made(outer)
    executed(hold, one, cut=(3, "drain"))
    asked[0] = "new"

    async def main() -> None:
        current_delivery.set(cast(Delivery, FakeDelivery()))
        with pytest.raises(Ignore):
            await execute_polled(hold, one, Polled(Claim(TASK, 2, 1), TaskMessage("t", {}, (), TASK)))

    at_once(main())
    assert hold.commit.rows[-1]["state"] == "parked"
    assert hold.commit.steps["slow", 0]["state"] == "done"


def test_a_run_that_ends_with_the_step_that_it_was_put_down_in_has_ended(hold: FakeHold) -> None:
    assert executed(hold, made(works), put_down_at=3) == "succeeded: 1 steps, 0 replayed"


def test_a_run_that_a_leaving_worker_cuts_off_is_handed_back_with_its_call_in_doubt(hold: FakeHold) -> None:
    assert isinstance(executed(hold, made(works), cut=(3, "drain")), Ignore)
    assert hold.kinds() == ["claim", "intent", "suspend"]
    assert [one.id for one in hold.returned] == [TASK]


def test_a_cancelled_run_ends_as_cancelled_with_its_call_booked_and_tells_its_family(hold: FakeHold) -> None:
    async def family(run: Run) -> None:
        await run.spawn("kid")
        await works(run)

    assert isinstance(executed(hold, made(family), cut=(3, "cancelled"), parent_id=PARENT), Ignore)
    row = hold.written("finish")
    assert (row["state"], row["error"]["code"]) == ("cancelled", "task_cancelled")
    assert hold.commit.steps["slow", 0]["result"] == {"error": "cut off"}
    assert (hold.family.woken, hold.family.cancelled, hold.hurries) == ([PARENT], [TASK], 1)


def test_an_agent_that_swallows_its_cancellation_is_cancelled_before_its_next_step(hold: FakeHold) -> None:
    async def stubborn(run: Run) -> str:
        for _ in range(9):
            try:
                await run.step("slow", asyncio.sleep, 10)
            except asyncio.CancelledError:
                continue
        return "all the same"

    assert isinstance(executed(hold, made(stubborn), cut=(13, "cancelled")), Ignore)
    assert hold.written("finish")["state"] == "cancelled"
    assert len(hold.commit.steps) == 2


def test_a_run_of_a_worker_that_lost_its_place_writes_nothing(hold: FakeHold) -> None:
    assert isinstance(executed(hold, made(works), cut=(3, "fenced")), Ignore)
    assert hold.kinds() == ["claim", "intent"]


def test_a_run_that_another_worker_has_by_now_ends_quietly(hold: FakeHold) -> None:
    hold.commit.fence_after(3)
    assert isinstance(executed(hold, made(works), parent_id=PARENT), Ignore)
    assert hold.family.woken == [], "the other one tells"


def test_a_parent_is_told_once_a_child_has_ended_and_goes_on_at_once(hold: FakeHold) -> None:
    executed(hold, made(works), parent_id=PARENT)
    assert (hold.family.woken, hold.hurries) == ([PARENT], 1)
    assert hold.family.cancelled == []


def test_children_of_a_run_that_fails_are_cancelled(hold: FakeHold) -> None:
    async def fails(run: Run) -> None:
        await run.spawn("kid")
        raise ValueError("no luck")

    executed(hold, made(fails))
    assert hold.family.cancelled == [TASK]


def test_a_task_whose_deadline_passed_before_it_could_go_on_fails(hold: FakeHold) -> None:
    past = datetime.now(UTC) - timedelta(seconds=5)
    assert "the deadline passed" in str(executed(hold, made(works), deadline_at=past))
    assert hold.written("finish")["error"]["code"] == "deadline_spent"


def test_a_cancellation_while_the_end_is_written_neither_stops_it_nor_writes_it_twice(
    hold: FakeHold, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = hold.commit.write

    async def cut_meanwhile(kind: Any, key: Any, row: Any) -> Any:
        if kind == "finish":
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
        return await write(kind, key, row)

    monkeypatch.setattr(hold.commit, "write", cut_meanwhile)
    assert executed(hold, made(works)) == "succeeded: 1 steps, 0 replayed"
    assert hold.kinds() == ["claim", "intent", "result", "finish"]


def test_calls_in_doubt_that_are_made_anew_are_counted(hold: FakeHold) -> None:
    executed(hold, made(works), cut=(3, "drain"))
    hold.commit.history.clear()
    hold.commit.rows.clear()
    before = REGISTRY.get_sample_value("fleet_steps_in_doubt_total", {"agent": "t"}) or 0

    async def main() -> str:
        current_delivery.set(cast(Delivery, FakeDelivery()))
        return await execute_polled(hold, AGENTS["t"], Polled(Claim(TASK, 2, 1), TaskMessage("t", {}, (), TASK)))

    assert at_once(main()) == "succeeded: 1 steps, 0 replayed"
    assert hold.kinds() == ["intent", "result", "finish"], "it was claimed when it was polled"
    assert hold.written("finish")["report"]["in_doubt"] == 1
    assert REGISTRY.get_sample_value("fleet_steps_in_doubt_total", {"agent": "t"}) == before + 1


async def test_a_polled_task_that_a_message_has_begun_is_left_to_it(hold: FakeHold) -> None:
    hold.is_new = False
    with pytest.raises(Ignore):
        await execute_polled(hold, made(works), Polled(Claim(TASK, 1, 1), TaskMessage("t", {}, (), TASK)))
    assert hold.kinds() == []


def test_an_agents_own_rules_reach_its_runs(hold: FakeHold) -> None:
    one = made(works, on_change="rerun")
    assert (one.on_change, one.retry) == ("rerun", ONCE)
    executed(hold, one)
    assert hold.family.journals[0]._on_change == "rerun"


def test_a_run_reads_no_less_than_its_message_and_its_claim_say_and_leaves_nothing_behind(hold: FakeHold) -> None:
    header, claimed = CausalToken(7, 1, 200, 5), CausalToken(7, 1, 100, 6)
    seen: list[CausalToken | None] = []

    async def looks(run: Run) -> None:
        seen.append(current())
        note(CausalToken(7, 1, 300, 7))

    async def main() -> None:
        delivery = cast(Delivery, FakeDelivery())
        current_delivery.set(delivery)
        with carrying(None):
            one, header_of = made(looks), {"version": 1}
            for token in (str(header), "garbage", str(CausalToken(8, 1, 900, 9)), None):
                hold.commit.claims_at = claimed
                await execute(hold, one, str(TASK), (), {}, header_of, token)
            hold.commit.claims_at = None
            await execute(hold, one, str(TASK), (), {}, header_of)
            polled = Polled(Claim(TASK, 1, 1, claimed), TaskMessage("t", {}, (), TASK))
            await execute_polled(hold, one, polled)
            assert current() is None

    at_once(main())
    assert seen == [CausalToken(7, 1, 200, 6), claimed, claimed, claimed, None, claimed]


class AwayCommit(FakeCommit):
    """A ledger whose database is away for a while after the claim; what is cancelled meanwhile is never sent."""

    def __init__(self, *, away_s: float) -> None:
        super().__init__()
        self._away_s = away_s

    async def write(self, kind: Kind, key: Key, row: dict[str, Any]) -> Written | None:
        if kind == "result":
            await asyncio.sleep(self._away_s)
        return await super().write(kind, key, row)


@pytest.mark.parametrize("away_s", [3.0, 60.0])
def test_a_call_that_ended_is_kept_though_the_hard_limit_falls_while_the_database_is_away(
    hold: FakeHold, away_s: float
) -> None:
    hold.commit = AwayCommit(away_s=away_s)
    hold.commit.becomes["claim"] = "running"
    hold.runs = FakeRuns(hold.commit)
    ended = executed(hold, made(works, soft_limit_s=10.5, hard_limit_s=11))
    assert isinstance(ended, SoftTimeLimitExceeded | TimeLimitExceeded)
    assert hold.kinds() == ["claim", "intent", "result", "finish"]
    assert hold.written("result")["state"] == "done", "paid for: a replay does not call again"


def test_what_a_call_cost_that_the_hard_limit_cut_off_is_kept_while_the_database_is_away(hold: FakeHold) -> None:
    async def asks(run: Run) -> Any:
        return await run._journal.step(
            "ask", kind="llm", request=1, call=lambda: asyncio.sleep(999), usage_if_cut=lambda: {"input_tokens": 9}
        )

    hold.commit = AwayCommit(away_s=60.0)
    hold.commit.becomes["claim"] = "running"
    hold.runs = FakeRuns(hold.commit)
    executed(hold, made(asks, soft_limit_s=10, hard_limit_s=10))
    assert hold.kinds() == ["claim", "intent", "result", "finish"]
    assert hold.written("result")["usage"] == {"input_tokens": 9}
