"""One keeper leads: it shows that it lives while its rounds go on; a standby waits, and takes over when it does not."""

import asyncio
import time
from collections.abc import Callable

import structlog

from shared.db.database import Database
from shared.errors import Fenced
from shared.ledger.terms import Candidate, Term, candidacy
from shared.telemetry.keeper_metrics import DECISIONS, EPOCH, LEADING, resign
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.rounds import Rounds, pause
from workers.keeper.succession import Watch

log = structlog.get_logger()

ROLE = "keeper"
LAST_CHORE_S = 5.0
"""Seconds that the chore under way gets once the keeper is told to stop."""


async def stand(
    database: Database,
    *,
    holder: str,
    knobs: KeeperKnobs,
    stop: asyncio.Event,
    rounds_of: Callable[[Term, float], Rounds],
) -> None:
    """Lead, or wait to lead, until told to stop or the database is gone.

    Args:
        rounds_of: What to do in a term, given since when (monotonic seconds) the database has been seen to answer.

    Raises: psycopg.Error, OSError.
    """
    async with candidacy(database, role=ROLE, holder=holder) as candidate:
        answers_since = time.monotonic()
        answer_s = database.knobs.statement_timeout_s + 5
        watch = Watch(stale_after_s=knobs.stale_after_s)
        while not stop.is_set():
            async with asyncio.timeout(answer_s):
                epoch = await candidate.stand()
            if epoch is not None:
                EPOCH.set(epoch)  # first: who is seen to lead is seen with its term
                LEADING.set(1)
                log.info("keeper.leads", epoch=epoch, holder=holder)
                rounds = rounds_of(Term(database, role=ROLE, epoch=epoch), answers_since)
                await _reign(candidate, epoch, rounds, knobs=knobs, stop=stop)
                return
            await _watch(candidate, watch, knobs=knobs, stop=stop)


async def _watch(candidate: Candidate, watch: Watch, *, knobs: KeeperKnobs, stop: asyncio.Event) -> None:
    async with asyncio.timeout(knobs.stale_after_s):
        look = await candidate.look()
    decision = watch.see(look, now_s=time.monotonic())
    if decision.action == "depose" and look.lock_pid is not None:
        DECISIONS.labels("depose").inc()
        log.warning("keeper.leader_deposed", reason=decision.reason)
        await candidate.depose(look.lock_pid)
        await pause(stop, min(0.1, knobs.look_s))
    else:
        await pause(stop, knobs.look_s)


async def _reign(
    candidate: Candidate, epoch: int, rounds: Rounds, *, knobs: KeeperKnobs, stop: asyncio.Event
) -> None:  # fmt: skip
    """Do rounds until told to stop or until the term is over, whichever is noticed first."""
    renewing = asyncio.create_task(_renew(candidate, epoch, rounds, knobs=knobs, stop=stop), name="renew")
    working = asyncio.create_task(rounds.run(stop), name="rounds")
    try:
        done, _ = await asyncio.wait((renewing, working), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in (renewing, working):
            one.cancel()
        await asyncio.gather(renewing, working, return_exceptions=True)
        resign()
        await rounds.close()
    try:
        for one in done:
            one.result()
    except Fenced as error:
        log.warning("keeper.deposed", cause=error.message)


async def _renew(
    candidate: Candidate, epoch: int, rounds: Rounds, *, knobs: KeeperKnobs, stop: asyncio.Event
) -> None:  # fmt: skip
    while not stop.is_set():
        if rounds.busy_s() > knobs.stuck_after_s:
            log.error("keeper.stuck", chore=rounds.busy_with, busy_s=round(rounds.busy_s(), 1))
            return
        async with asyncio.timeout(knobs.stale_after_s):
            if not await candidate.renew(epoch):
                raise Fenced(f"term {epoch} of the {ROLE} is over: another process leads")
        await pause(stop, knobs.renew_s)
    await asyncio.sleep(LAST_CHORE_S)
