"""What a worker with keys writes is sealed, what it reads is opened, and what it cannot open waits for the key."""

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from shared.contracts import FleetHeader, TaskMessage, tick_task_id
from shared.db.database import Database
from shared.errors import BadInput, LLMRefused, SealBroken, SealKeyUnknown
from shared.ledger.catalogue import Catalogue
from shared.ledger.journal import Journal, Look
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.runs import Claim, Runs
from shared.ledger.sealed_input import (
    open_input,
    open_message,
    open_scheduled,
    seal_message,
    seal_scheduled,
    tick_input,
)
from shared.ledger.suspension import Suspended, Suspension
from shared.ledger.vault import OUTPUT, Vault, blob_role, is_sealed, step_role
from shared.ledger.vault_knobs import MasterKey
from tests.fakes.fake_ledger import FakeCommit
from workers.agents.endings import ending_of

TASK = UUID(int=7)
CLAIM = Claim(TASK, epoch=3, attempt=1)
VAULT = Vault([MasterKey("k1", os.urandom(32))])
WORD = {"said": "Grace"}
AT = datetime(2027, 1, 1, 8, tzinfo=UTC)
MISSING = SealKeyUnknown("a value is sealed under key 'k9'", key_id="k9")


@pytest.fixture
def commit() -> FakeCommit:
    commit = FakeCommit()
    commit.becomes["claim"] = "running"
    return commit


@pytest.fixture
def runs(commit: FakeCommit) -> Runs:
    return Runs(cast(Database, None), commit, LedgerKnobs(), vault=VAULT)


def journal_of(commit: FakeCommit, **knobs: Any) -> Journal:
    return Journal(commit, LedgerKnobs(**knobs), task_id=TASK, epoch=1, recorded={}, vault=VAULT)


async def step(journal: Journal, result: Any) -> Any:
    async def call() -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return await journal.step("think", kind="step", request=None, call=call)


async def test_a_plain_message_is_sealed_in_the_ledger_and_a_sealed_one_kept_as_it_came(
    runs: Runs, commit: FakeCommit
) -> None:
    plain = TaskMessage("a", WORD, (1,), TASK)
    await runs.claim(plain)
    await runs.claim(seal_message(VAULT, plain))
    for row in commit.rows:
        assert "Grace" not in str(row) and open_input(VAULT, row["input"], task_id=TASK) == ([1], WORD)


async def test_a_childs_input_is_checked_in_clear_and_stored_sealed(
    runs: Runs, commit: FakeCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []

    async def check(_self: Catalogue, agent: str, kwargs: Mapping[str, Any]) -> None:
        checked.append((agent, kwargs))

    monkeypatch.setattr(Catalogue, "check", check)
    child = TaskMessage("kid", WORD, (), TASK, FleetHeader(parent_id=UUID(int=1)))
    await runs.accept_child(child, parent_epoch=1, is_published=True)
    (row,) = commit.rows
    assert checked == [("kid", WORD)]
    assert is_sealed(row["input"]["kwargs"]) and open_input(VAULT, row["input"], task_id=TASK) == ([], WORD)


async def test_an_output_is_sealed_for_its_task(runs: Runs, commit: FakeCommit) -> None:
    await runs.succeed(CLAIM, WORD, {})
    (row,) = commit.rows
    assert is_sealed(row["output"]) and VAULT.open(row["output"], task_id=TASK, role=OUTPUT) == WORD
    with pytest.raises(BadInput, match=r"^the agent's output is not JSON"):
        await runs.succeed(CLAIM, object(), {})


async def test_results_failures_and_large_results_are_sealed_each_in_its_own_place(commit: FakeCommit) -> None:
    small, large = journal_of(commit), journal_of(commit, blob_bytes=10)
    assert await step(small, WORD) == WORD
    stored = commit.steps["think", 0]["result"]
    assert is_sealed(stored) and VAULT.open(stored, task_id=TASK, role=step_role("think", 0)) == WORD
    with pytest.raises(LLMRefused):
        await step(small, LLMRefused("not with Grace"))
    failed = commit.steps["think", 1]["result"]
    assert VAULT.open(failed, task_id=TASK, role=step_role("think", 1))["error"]["message"] == "not with Grace"
    assert await step(large, WORD) == WORD
    blob = commit.blobs["think", 0]
    assert is_sealed(blob) and VAULT.open(blob, task_id=TASK, role=blob_role("think", 0)) == WORD
    assert commit.steps["think", 0]["result"] is None


async def test_the_size_of_a_large_result_is_that_of_the_plain_one(commit: FakeCommit) -> None:
    await step(journal_of(commit, blob_bytes=100), "x" * 90)  # sealed, it is longer than that
    assert commit.blobs == {}


async def test_a_result_that_is_not_json_is_the_steps_mistake_with_keys_too(commit: FakeCommit) -> None:
    with pytest.raises(BadInput, match=r"^the result of step 'think' is not JSON"):
        await step(journal_of(commit), object())


async def test_a_step_that_meets_an_unknown_key_has_no_outcome_and_is_tried_again(commit: FakeCommit) -> None:
    journal = journal_of(commit)
    with pytest.raises(Suspended):  # no agent catches that and goes on without
        await step(journal, MISSING)
    assert journal.is_left and journal.suspension is not None
    assert (journal.suspension.state, (journal.suspension.error or {})["code"]) == ("parked", "seal_key_unknown")
    assert (commit.steps["think", 0]["state"], commit.steps["think", 0]["in_doubt"]) == ("waiting", 0)
    assert await step(commit.journal(TASK, epoch=2), WORD) == WORD
    assert commit.steps["think", 0]["in_doubt"] == 0


async def test_a_wait_that_meets_an_unknown_key_is_looked_at_again_later(commit: FakeCommit) -> None:
    async def closed() -> Look:
        raise MISSING

    async def opened() -> Look:
        return Look(is_over=True, value=WORD)

    async def wait(journal: Journal, look: Any) -> Any:
        return await journal.wait(
            "signal.go", kind="signal", request=None, wait_s=None, look=look, suspension=Suspension(),
            expired=lambda: None,
        )  # fmt: skip

    journal = journal_of(commit)
    with pytest.raises(Suspended):
        await wait(journal, closed)
    assert journal.suspension is not None and journal.suspension.state == "parked"
    assert await wait(commit.journal(TASK, epoch=2), opened) == WORD


@pytest.mark.parametrize("reason", [None, "drain"])
def test_a_run_that_meets_an_unknown_key_is_parked_and_a_broken_seal_fails_it(reason: Any) -> None:
    def ended(error: BaseException) -> Any:
        return ending_of(output=None, error=error, reason=reason, suspension=None, is_left=False)

    parked = ended(MISSING)
    assert (parked.kind, parked.suspension.state) == ("suspended", "parked")
    assert parked.suspension.error["code"] == "seal_key_unknown"
    if reason is None:
        assert ended(SealBroken("altered")).kind == "failed"


def test_a_cancel_counts_more_than_a_missing_key() -> None:
    ending = ending_of(output=None, error=MISSING, reason="cancelled", suspension=None, is_left=False)
    assert (ending.kind, ending_of(output=None, error=asyncio.CancelledError(), reason="fenced", suspension=None,
                                   is_left=False).kind) == ("cancelled", "fenced")  # fmt: skip


def test_a_schedules_input_opens_for_its_own_ticks_and_for_nothing_else() -> None:
    stored = seal_scheduled(VAULT, "daily", WORD)
    assert "Grace" not in str(stored) and open_scheduled(VAULT, "daily", stored) == {"args": [], "kwargs": WORD}
    tick = tick_input("daily", AT, stored)
    for session in (None, "s"):
        task_id = tick_task_id("daily", AT, tenant="acme", session=session)
        assert open_input(VAULT, tick, task_id=task_id) == ([], WORD)
    other = AT + timedelta(days=1)
    for forged, task_id in (
        (tick, TASK),
        (tick, tick_task_id("daily", other)),
        (stored, tick_task_id("daily", AT)),
        (tick_input("weekly", AT, stored), tick_task_id("weekly", AT)),
        ({**tick, "args": [*tick["args"], 1]}, tick_task_id("daily", AT)),
        ({**tick, "args": [{**tick["args"][0], "more": 1}]}, tick_task_id("daily", AT)),
        ({**tick, "args": [{"$schedule": "daily", "at": "now"}]}, tick_task_id("daily", AT)),
        ({**tick, "args": ["daily"]}, tick_task_id("daily", AT)),
    ):
        with pytest.raises(SealBroken):
            open_input(VAULT, forged, task_id=task_id)


def test_a_tick_travels_as_an_ordinary_message() -> None:
    tick = tick_input("daily", AT, seal_scheduled(VAULT, "daily", WORD))
    message = TaskMessage("a", tick["kwargs"], tuple(tick["args"]), tick_task_id("daily", AT))
    assert open_message(VAULT, message).kwargs == WORD and open_message(VAULT, message).args == ()


def test_without_keys_a_schedule_is_plain_and_a_sealed_one_is_shown_as_it_is() -> None:
    plain = seal_scheduled(Vault(), "daily", WORD)
    assert plain == tick_input("daily", AT, plain) == open_scheduled(Vault(), "daily", plain)
    sealed = seal_scheduled(VAULT, "daily", WORD)
    assert open_scheduled(Vault(), "daily", sealed) == open_scheduled(VAULT, "weekly", sealed) == sealed
    with pytest.raises(BadInput):
        seal_scheduled(Vault(), "daily", {"$sealed": 1})
