"""A fork and the signals of its original: it has had those that its reused waits got, and asks for the others anew."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared.client import FleetClient
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.replaying import fork
from shared.ledger.runs import Claim, Runs
from shared.ledger.steering import signal
from shared.ledger.suspension import Suspended, Suspension
from shared.ledger.vault import NO_VAULT, Vault, signal_role
from shared.ledger.vault_knobs import KEY_BYTES, MasterKey
from tests.integration.by_hand import ByHand

SEALED = Vault((MasterKey("k1", b"s" * KEY_BYTES),))


@pytest.fixture(params=[NO_VAULT, SEALED], ids=["plain", "sealed"])
def vault(request: pytest.FixtureRequest) -> Vault:
    return request.param  # type: ignore[no-any-return]


async def told(worker: ByHand, task_id: UUID, vault: Vault, *payloads: Any) -> None:
    for payload in payloads:
        sealed = vault.seal(payload, task_id=task_id, role=signal_role("ok"))
        await signal(worker.database, task_id, "ok", sealed, redispatch_s=30)


async def asks(worker: ByHand, claim: Claim, vault: Vault, *, times: int) -> list[Any]:
    """An agent that makes a step and waits, so many times; returns what it heard until it had to be put down."""
    runs = Runs(worker.database, worker.commit, LedgerKnobs(suspend_after_s=0.0), vault=vault)
    journal, heard = await runs.journal(claim), []

    def look(number: int) -> Callable[[], Any]:
        return lambda: runs.look_for_signal(claim.task_id, name="ok", number=number)

    async def work() -> str:
        return "done"

    try:
        for number in range(times):
            await journal.step("work", kind="step", request=[number], call=work)
            heard.append(await journal.wait(
                "signal.ok", kind="signal", request={"timeout_s": None}, wait_s=None, look=look(number),
                suspension=Suspension(kind="signal", signals=("ok",)), expired=lambda: None,
            ))  # fmt: skip
    except Suspended:
        assert journal.suspension is not None
        await runs.suspend(claim, journal.suspension)
    return heard


async def test_a_fork_has_had_the_signals_of_its_reused_waits_and_asks_for_the_others_anew(
    producer: FleetClient, worker: ByHand, vault: Vault
) -> None:
    original = (await producer.asubmit("a", {"x": 1})).id
    await told(worker, original, vault, "first", "second", "third")
    assert await asks(worker, await worker.claim(original), vault, times=3) == ["first", "second", "third"]

    forked = (await fork(worker.database, original, from_step="work#1", redispatch_s=30, vault=vault)).task_id
    assert await asks(worker, await worker.claim(forked), vault, times=3) == ["first"], "it asks for the second itself"
    await told(worker, forked, vault, "another", "and another")
    assert await asks(worker, await worker.claim(forked), vault, times=3) == ["first", "another", "and another"]


async def test_a_fork_that_is_replayed_from_a_reused_wait_hears_what_the_original_heard(
    producer: FleetClient, worker: ByHand, vault: Vault
) -> None:
    original = (await producer.asubmit("a", {"x": 1})).id
    await told(worker, original, vault, "first", "second")
    await asks(worker, await worker.claim(original), vault, times=2)
    forked = (await fork(worker.database, original, from_step="work#1", redispatch_s=30, vault=vault)).task_id
    await worker.do("DELETE FROM steps WHERE task_id = :id", id=forked)
    assert await asks(worker, await worker.claim(forked), vault, times=2) == ["first"]


async def test_the_original_keeps_its_signals(producer: FleetClient, worker: ByHand) -> None:
    original = (await producer.asubmit("a", {"x": 1})).id
    await told(worker, original, NO_VAULT, "first")
    await asks(worker, await worker.claim(original), NO_VAULT, times=1)
    await fork(worker.database, original, from_step="signal.ok", redispatch_s=30, vault=NO_VAULT)
    assert [row.task_id for row in await worker.all("SELECT task_id FROM signals")] == [original]
