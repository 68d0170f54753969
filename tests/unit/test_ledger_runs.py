"""The end of a run: it is written, whatever the error says."""

from typing import Any, cast
from uuid import UUID

import pytest

from shared.contracts import FleetHeader, TaskMessage
from shared.db.database import Database
from shared.errors import BadInput, Fenced, Permanent, TaskCancelled
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.runs import Claim, Runs
from shared.ledger.suspension import Suspension
from tests.fakes.fake_ledger import FakeCommit

CLAIM = Claim(UUID(int=7), epoch=3, attempt=1)


@pytest.fixture
def commit() -> FakeCommit:
    return FakeCommit()


@pytest.fixture
def runs(commit: FakeCommit) -> Runs:
    return Runs(cast(Database, None), commit, LedgerKnobs(redispatch_s=7))


async def test_a_run_ends_with_its_output_under_its_epoch(runs: Runs, commit: FakeCommit) -> None:
    await runs.succeed(CLAIM, {"answer": 42}, {"level": "L0"})
    (row,) = commit.rows
    assert (row["state"], row["epoch"], row["output"], row["report"]) == (
        "succeeded",
        3,
        {"answer": 42},
        {"level": "L0"},
    )


@pytest.mark.parametrize("output", [object(), float("nan"), "a\x00b"])
async def test_an_output_that_cannot_be_stored_is_the_agents_mistake(runs: Runs, output: Any) -> None:
    with pytest.raises(BadInput, match=r"^the agent's output is not"):
        await runs.succeed(CLAIM, output, {})


async def test_a_run_ends_with_its_error(runs: Runs, commit: FakeCommit) -> None:
    await runs.fail(CLAIM, Permanent("no luck", n=1), {"level": "L0"})
    (row,) = commit.rows
    assert row["error"] == {"code": "permanent", "message": "no luck", "context": {"n": 1}}


@pytest.mark.parametrize(
    ("error", "report"),
    [
        (Permanent("ValueError: a\x00b"), {}),
        (Permanent("no", what=object()), {}),
        (Permanent("no"), {"reasons": ["a\x00b"]}),
    ],
)
async def test_an_error_that_cannot_be_stored_ends_the_run_all_the_same(
    runs: Runs, commit: FakeCommit, error: Permanent, report: dict[str, Any]
) -> None:
    await runs.fail(CLAIM, error, report)
    (row,) = commit.rows
    assert (row["state"], row["error"]["code"], row["report"]) == ("failed", "permanent", {})
    assert row["error"]["message"].startswith("the task failed with permanent, whose text or report is not ")


async def test_a_run_ends_as_cancelled_with_what_it_cost_by_then(runs: Runs, commit: FakeCommit) -> None:
    await runs.cancel(CLAIM, TaskCancelled("stopped"), {"input_tokens": 7})
    (row,) = commit.rows
    assert (row["state"], row["error"]["code"], row["report"]) == ("cancelled", "task_cancelled", {"input_tokens": 7})


async def test_a_run_is_put_down_with_what_wakes_it_and_its_report_so_far(runs: Runs, commit: FakeCommit) -> None:
    waits = Suspension(kind="signal", signals=("ok",), wait_s=60, seen_wakes=2)
    assert await runs.suspend(CLAIM, waits, {"input_tokens": 7}) == "waiting"
    (row,) = commit.rows
    assert row == {
        "id": str(CLAIM.task_id), "epoch": 3, "report": {"input_tokens": 7}, "state": "waiting", "wait_s": 60,
        "waiting_for": {"kind": "signal", "signals": ["ok"]}, "seen_wakes": 2, "error": None,
    }  # fmt: skip


async def test_a_run_is_put_down_without_a_report_or_a_reason_that_cannot_be_stored(
    runs: Runs, commit: FakeCommit
) -> None:
    parked = Suspension(state="parked", error={"code": "step_changed", "message": "x\x00y"})
    for suspension in (Suspension(kind="sleep", wait_s=60), parked):
        await runs.suspend(CLAIM, suspension, {"reasons": ["x\x00y"]})
    sleeping, aside = commit.rows
    assert (sleeping["state"], sleeping["wait_s"], sleeping["report"], sleeping["error"]) == ("waiting", 60, None, None)
    assert aside["error"] == {"code": "step_changed", "message": "a text that cannot be stored"}


async def test_the_ledger_has_the_last_word_on_what_becomes_of_a_run_that_is_put_down(
    runs: Runs, commit: FakeCommit
) -> None:
    commit.becomes["suspend"] = "cancelled"
    assert await runs.suspend(CLAIM, Suspension()) == "cancelled"
    assert await runs.release(CLAIM) == "cancelled"


async def test_a_message_whose_task_is_held_or_not_due_is_no_claim(runs: Runs, commit: FakeCommit) -> None:
    message = TaskMessage("a", {})
    commit.becomes["claim"] = "running"
    assert await runs.claim(message) == Claim(message.id, 0, 1)
    for state in ("queued", "waiting"):
        commit.becomes["claim"] = state
        assert await runs.claim(message) is None


async def test_a_woken_parent_is_told_from_one_that_still_waits(runs: Runs, commit: FakeCommit) -> None:
    for state, goes_on in (("queued", True), ("waiting", False), ("running", False)):
        commit.becomes["wake"] = state
        assert await runs.wake(UUID(int=1)) is goes_on


async def test_a_child_is_accepted_with_its_family_and_the_time_after_which_the_keeper_looks_for_it(
    runs: Runs, commit: FakeCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unchecked(*_: Any) -> None: ...

    monkeypatch.setattr("shared.ledger.catalogue.Catalogue.check", unchecked)
    header = FleetHeader(parent_id=CLAIM.task_id, root_agent="root", tenant="acme")
    assert (
        await runs.accept_child(TaskMessage("kid", {"n": 1}, fleet=header), parent_epoch=3, is_published=False) is False
    )
    (row,) = commit.rows
    assert (row["parent_id"], row["root_agent"], row["tenant"]) == (str(CLAIM.task_id), "root", "acme")
    assert (row["published"], row["redispatch_s"], row["parent_epoch"]) == (False, 7, 3)
    commit.is_fenced = True
    with pytest.raises(Fenced, match="is no longer at epoch 3"):
        await runs.accept_child(TaskMessage("kid", {"n": 1}, fleet=header), parent_epoch=3, is_published=False)


async def test_a_run_that_belongs_to_another_worker_ends_nothing(runs: Runs, commit: FakeCommit) -> None:
    commit.is_fenced = True
    for end in (
        runs.succeed(CLAIM, 1, {}),
        runs.fail(CLAIM, Permanent("no"), {}),
        runs.cancel(CLAIM, TaskCancelled("no"), {}),
        runs.suspend(CLAIM, Suspension()),
        runs.release(CLAIM),
    ):
        with pytest.raises(Fenced, match="is no longer at epoch 3"):
            await end
