"""Cancel, signal, resume, replay and fork as producers see them, on a real ledger; the worker is played by hand."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from shared.client import FleetClient
from shared.contracts import CANCEL_CHANNEL
from shared.errors import (
    BadInput,
    FleetError,
    LLMRefused,
    SealKeyUnknown,
    StepChanged,
    TaskCancelled,
    UnknownTask,
    WrongState,
)
from shared.ledger import hurry
from shared.ledger.journal import Look
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.sealed_input import open_input
from shared.ledger.suspension import Suspended, Suspension
from shared.ledger.vault import Vault, step_role
from shared.ledger.vault_knobs import KEY_BYTES, MasterKey
from tests.integration.by_hand import ByHand
from tests.integration.fleets import PATIENCE_S
from workers.ops.background import BackgroundSupervisor


@pytest.fixture
def ledger_knobs() -> LedgerKnobs:
    return LedgerKnobs(fair_window=5, input_max_bytes=1000)


async def submitted(producer: FleetClient, **how: Any) -> UUID:
    return (await producer.asubmit("a", {"x": 1}, **how)).id


async def unchanged(worker: ByHand, task_id: UUID, before: Any) -> bool:
    return tuple(await worker.row(task_id)) == tuple(before)


async def test_a_cancel_ends_what_waits_at_once_and_asks_what_runs(
    producer: FleetClient, worker: ByHand, servers: BackgroundSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hurry, "WAIT_S", PATIENCE_S)
    parent = await submitted(producer)
    claim = await worker.claim(parent)
    queued, running = [await worker.spawn(parent) for _ in range(2)]
    await worker.claim(running)
    grandchild = await worker.spawn(running)
    async with Redis.from_url(servers.redis_url) as redis, redis.pubsub() as listener:
        await listener.subscribe(CANCEL_CHANNEL)
        await listener.get_message(timeout=60)
        view = await producer.acancel(parent)
        heard = {(await listener.get_message(timeout=60))["data"].decode() for _ in range(2)}
    assert heard == {str(parent), str(running)}
    assert (view.state, view.condition) == ("running", "asked to stop")
    states = {child.id: child.state for child in view.children}
    assert states == {queued: "cancelled", running: "running"}
    below = await producer.astatus(grandchild)
    assert (below.state, below.error) == (
        "cancelled", {"code": "task_cancelled", "message": "the task was cancelled with its parent"}
    )  # fmt: skip
    assert await worker.try_claim(queued) is None
    assert await worker.wait(claim, kind="sleep", wait_s=60) == "cancelled", "a cancelled run is not put down"
    with pytest.raises(TaskCancelled, match="the task was cancelled"):
        await producer.aresult(parent, 1)


async def test_a_cancelled_child_wakes_its_waiting_parent(producer: FleetClient, worker: ByHand) -> None:
    parent = await submitted(producer)
    claim = await worker.claim(parent)
    one, other = [await worker.spawn(parent) for _ in range(2)]
    assert await worker.wait(claim, kind="children", children=((str(one), str(other)),)) == "waiting"
    await producer.acancel(one)
    assert (await producer.astatus(parent)).condition == "waiting for 2 children"
    await producer.acancel(other)
    assert (await producer.astatus(parent)).state == "queued"
    assert (await worker.claim(parent)).attempt == 1


async def test_a_second_cancel_is_a_clear_answer_and_changes_nothing(producer: FleetClient, worker: ByHand) -> None:
    waiting, running, done = [await submitted(producer) for _ in range(3)]
    await worker.claim(running)
    await worker.runs.succeed(await worker.claim(done), "ok", {})
    for task_id in (waiting, running):
        await producer.acancel(task_id)
    for task_id, told in [
        (waiting, "is cancelled already"),
        (running, r"was asked to stop \S+ \S+ ago already"),
        (done, "has succeeded: there is nothing left to cancel"),
    ]:
        before = await worker.row(task_id)
        with pytest.raises(WrongState, match=told):
            await producer.acancel(task_id)
        assert await unchanged(worker, task_id, before)


async def test_a_signal_is_kept_before_the_wait_and_wakes_during_it(producer: FleetClient, worker: ByHand) -> None:
    task = await submitted(producer)
    claim = await worker.claim(task)
    assert (await producer.asignal(task, "approval", {"by": "ann"})).state == "running"
    journal = await worker.journal(claim)

    async def look() -> Look:
        found = await worker.all(
            "SELECT t.wakes, s.payload FROM tasks t LEFT JOIN signals s ON s.task_id = t.id AND s.name = 'approval' "
            "WHERE t.id = :id", id=task,
        )  # fmt: skip
        return Look(found[0].payload is not None, found[0].payload, found[0].wakes)

    got = await journal.wait(
        "signal.approval", kind="signal", request=["approval"], wait_s=60, look=look,
        suspension=Suspension(kind="signal", signals=("approval",)), expired=lambda: None,
    )  # fmt: skip
    assert got == {"by": "ann"}
    wakes = (await worker.row(task)).wakes
    assert await worker.runs.suspend(claim, Suspension(kind="signal", signals=("go", "stop"), seen_wakes=wakes))
    assert (await producer.astatus(task)).condition == "waiting for signal go, stop"
    assert (await producer.asignal(task, "other")).state == "waiting"
    woken = await producer.asignal(task, "go")
    assert (woken.state, woken.wake_at, woken.waiting_for) == ("queued", None, None)
    assert (await worker.row(task)).published_at is not None
    assert (await worker.claim(task)).epoch > claim.epoch


async def test_bad_signals_are_named_errors(producer: FleetClient, worker: ByHand) -> None:
    done, task = [await submitted(producer) for _ in range(2)]
    await worker.runs.succeed(await worker.claim(done), "ok", {})
    with pytest.raises(WrongState, match="has succeeded: nobody will wait for signal 'go' any more"):
        await producer.asignal(done, "go")
    with pytest.raises(UnknownTask):
        await producer.asignal(uuid4(), "go")
    for name, payload in [
        ("", 1),
        ("x" * 201, 1),
        ("a\x00", 1),
        ("go", object()),
        ("go", "a\x00"),
        ("go", float("nan")),
    ]:
        with pytest.raises(BadInput):
            await producer.asignal(task, name, payload)
    assert await worker.all("SELECT * FROM signals") == []


async def test_a_task_parked_by_a_changed_step_goes_on_with_the_old_result_or_a_new_one(
    producer: FleetClient, worker: ByHand
) -> None:
    for on_change, answer in [("reuse", "old"), ("rerun", "new")]:
        task = await submitted(producer)
        claim = await worker.claim(task)

        async def ask(claim: Any, request: str, answer: str) -> Any:
            journal = await worker.journal(claim)

            async def call() -> str:
                return answer

            try:
                return await journal.step("ask", kind="llm", request=request, call=call)
            except Suspended:
                assert journal.suspension is not None
                return await worker.runs.suspend(claim, journal.suspension)

        assert await ask(claim, "one", "old") == "old"
        assert await worker.runs.release(claim) == "queued"
        assert await ask(await worker.claim(task), "two", "unheard") == "parked"
        with pytest.raises(BadInput, match="on_change must be"):
            await producer.aresume(task, "maybe")  # type: ignore[arg-type]
        view = await producer.aresume(task, on_change)  # type: ignore[arg-type]
        assert (view.state, view.error) == ("queued", None)
        assert await ask(await worker.claim(task), "two", "new") == answer
        assert (await producer.astatus(task)).repeated_steps == 0


async def test_only_a_parked_task_can_be_resumed_and_only_a_changed_step_settled(
    producer: FleetClient, worker: ByHand
) -> None:
    task = await submitted(producer)
    with pytest.raises(WrongState, match="is queued: only a parked task can be resumed"):
        await producer.aresume(task)
    gone = FleetError("no worker offers agent 'a' any more").as_dict()
    await worker.runs.suspend(await worker.claim(task), Suspension(state="parked", error=gone))
    before = await worker.row(task)
    with pytest.raises(BadInput, match="is not parked because a step changed"):
        await producer.aresume(task, "reuse")
    assert await unchanged(worker, task, before)
    assert (await producer.aresume(task)).state == "queued"
    with pytest.raises(UnknownTask):
        await producer.aresume(uuid4())


async def test_a_replay_tries_the_failed_step_again_and_pays_for_no_other(
    producer: FleetClient, worker: ByHand
) -> None:
    task = await submitted(producer, deadline_s=100)
    claim, refused = await worker.claim(task), LLMRefused("the endpoint said no")
    with pytest.raises(LLMRefused):
        await worker.steps(claim, "one", "two", "three", fails=refused)
    await worker.runs.fail(claim, refused, {})
    before = await producer.astatus(task)
    view = await producer.areplay(task)
    assert (view.state, view.attempt, view.error, view.finished_at) == ("queued", 0, None, None)
    assert view.deadline_at is not None
    assert before.deadline_at is not None
    assert view.deadline_at > before.deadline_at
    assert [step.name for step in view.steps] == ["one", "two"]
    assert await worker.steps(await worker.claim(task), "one", "two", "three") == ["three"]


async def test_a_replay_from_a_step_does_it_and_what_followed_again(producer: FleetClient, worker: ByHand) -> None:
    task = await submitted(producer)
    claim = await worker.claim(task)
    await worker.steps(claim, "one", "two", "two", "three")
    await worker.runs.fail(claim, FleetError("broken"), {})
    before = await worker.row(task)
    with pytest.raises(BadInput, match="there is no step 'four' to begin from; the task has one, two, two#1, three"):
        await producer.areplay(task, "four")
    assert await unchanged(worker, task, before)
    looked = await producer.apreview(task, "two#1")
    assert ([one.label for one in looked.kept], [one.label for one in looked.again]) == (
        ["one", "two"],
        ["two#1", "three"],
    )
    await producer.areplay(task, "two#1")
    assert await worker.steps(await worker.claim(task), "one", "two", "two", "three") == ["two", "three"]


async def test_a_cancelled_tree_is_replayed_as_a_tree(producer: FleetClient, worker: ByHand) -> None:
    parent = await submitted(producer)
    await worker.claim(parent)
    done, cut = [await worker.spawn(parent) for _ in range(2)]
    await worker.runs.succeed(await worker.claim(done), "ok", {})
    await worker.do("UPDATE tasks SET state = 'queued', worker_id = NULL WHERE id = :id", id=parent)
    await producer.acancel(parent)
    view = await producer.areplay(parent)
    assert (view.state, view.cancel_requested_at) == ("queued", None)
    assert {child.id: child.state for child in view.children} == {done: "succeeded", cut: "queued"}


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
async def test_only_what_failed_or_was_cancelled_can_be_replayed(
    producer: FleetClient, worker: ByHand, state: str
) -> None:
    task = await submitted(producer)
    if state != "queued":
        claim = await worker.claim(task)
    if state == "succeeded":
        await worker.runs.succeed(claim, 1, {})
    before = await worker.row(task)
    with pytest.raises(WrongState, match=f"is {state}: only failed and cancelled tasks can be replayed"):
        await producer.areplay(task)
    assert await unchanged(worker, task, before)
    with pytest.raises(UnknownTask):
        await producer.areplay(uuid4())


async def test_a_fork_finds_the_steps_before_done_and_does_the_others_itself(
    producer: FleetClient, worker: ByHand
) -> None:
    task = await submitted(producer, tenant="acme", session="s")
    claim = await worker.claim(task)
    await worker.steps(claim, "one", "two", "three")
    forked = await producer.afork(task, "three")
    view = await producer.astatus(forked.id)
    assert (view.forked_from, view.tenant, view.session, view.state) == (task, "acme", "s", "queued")
    assert [(step.name, step.usage) for step in view.steps] == [("one", None), ("two", None)], "the first one has paid"
    fresh = await worker.claim(forked.id)
    assert await worker.steps(fresh, "one", "two", "three") == ["three"]
    await worker.runs.succeed(fresh, "other", {})
    assert await producer.aresult(forked.id, 1) == "other"
    assert (await producer.astatus(task)).state == "running", "the original goes on"
    assert (await producer.astatus(forked.id)).repeated_steps == 0


async def test_large_results_go_with_a_fork_and_are_forgotten_by_a_replay(
    producer: FleetClient, worker: ByHand
) -> None:
    task = await submitted(producer)
    claim = await worker.claim(task)
    journal = await worker.journal(claim)

    async def large() -> str:
        return "x" * 300_000

    await journal.step("large", kind="step", request=[], call=large)
    await worker.runs.fail(claim, FleetError("broken"), {})
    forked = await producer.afork(task)

    async def never() -> str:
        raise AssertionError("paid twice")

    again = await worker.journal(await worker.claim(forked.id))
    assert await again.step("large", kind="step", request=[], call=never) == "x" * 300_000
    await producer.areplay(task, "large")
    left = await worker.all("SELECT task_id FROM blobs")
    assert [row.task_id for row in left] == [forked.id]


async def test_a_fork_of_a_sealed_task_is_sealed_for_itself(producer: FleetClient, worker: ByHand) -> None:
    vault = producer._vault = Vault([MasterKey("k1", bytes(KEY_BYTES))])
    task = await submitted(producer)
    await worker.steps(await worker.claim(task), "one")
    sealed = vault.seal({"said": "one"}, task_id=task, role=step_role("one", 0))
    await worker.do("UPDATE steps SET result = CAST(:sealed AS json)", sealed=json.dumps(sealed))
    forked = await producer.afork(task)
    stored = (await worker.row(forked.id)).input
    assert open_input(vault, stored, task_id=forked.id) == ([], {"x": 1})
    (step,) = await worker.all("SELECT result FROM steps WHERE task_id = :id", id=forked.id)
    assert vault.open(step.result, task_id=forked.id, role=step_role("one", 0)) == {"said": "one"}
    producer._vault = Vault()
    with pytest.raises(SealKeyUnknown):
        await producer.afork(task)
    assert [row.n for row in await worker.all("SELECT count(*) AS n FROM tasks")] == [2], "nothing is half forked"


async def test_what_a_changed_step_says_is_what_a_resume_needs(producer: FleetClient) -> None:
    error = StepChanged("changed", step="ask", ordinal=0, fingerprint="mark").as_dict()
    assert set(error["context"]) == {"step", "ordinal", "fingerprint"}
