"""`python -m workers.keeper.main`: settings in, terms of office until SIGTERM."""

import asyncio
import signal
import sys
from uuid import uuid4

import psycopg
import structlog

from shared.broker.publisher import Publisher
from shared.db.database import Database
from shared.db.shards import Shards
from shared.db.shards_file import own_shard
from shared.errors import DatabaseUnavailable, FleetError
from shared.ledger.terms import Term
from shared.settings import Settings, load, load_room
from shared.telemetry.exposition import serve_metrics
from shared.telemetry.logs import setup_logs
from shared.telemetry.notify import notify
from shared.telemetry.redaction import load_hooks
from workers.keeper.broker_chores import BrokerChores
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.leadership import stand
from workers.keeper.ledger_chores import LedgerChores
from workers.keeper.outbox import Outbox
from workers.keeper.rounds import Lane, Rounds, pause
from workers.keeper.strays_chore import strays_chore

log = structlog.get_logger()


async def keep() -> None:
    """Lead, or wait to lead, until told to stop."""
    settings = load()
    setup_logs(style=settings.log.style, level=settings.log.level, hooks=load_hooks(settings.log.redact))
    knobs = load_room("keeper", KeeperKnobs)
    holder = f"fleet-keeper-{uuid4().hex[:12]}"
    database = Database(settings.db, application_name=holder)
    publisher = Publisher(settings.broker)
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    serve_metrics(knobs.metrics_port, variable="FLEET_KEEPER_METRICS_PORT")
    notify(settings.notify_socket)

    shards = Shards(settings.shards, settings.db, application_name=holder) if settings.shards else None

    def rounds_of(term: Term, answers_since: float) -> Rounds:
        return wire(term, publisher, settings=settings, knobs=knobs, answers_since=answers_since, shards=shards)

    while not stop.is_set():
        try:
            await stand(database, holder=holder, knobs=knobs, stop=stop, rounds_of=rounds_of)
        except (DatabaseUnavailable, psycopg.Error, OSError) as error:
            log.warning("keeper.database_away", cause=str(error).splitlines()[0] if str(error) else repr(error))
            await pause(stop, knobs.round_s)
    await asyncio.to_thread(publisher.close)
    await database.close()
    if shards is not None:
        await shards.close()


def wire(
    term: Term, publisher: Publisher, *, settings: Settings, knobs: KeeperKnobs, answers_since: float,
    shards: Shards | None = None,
) -> Rounds:  # fmt: skip
    """One term's chores; those of the ledger, of the broker and towards other shards each in a lane of their own."""
    outbox = Outbox(publisher, term)
    ledger = LedgerChores(term, outbox, ledger=settings.ledger, knobs=knobs, answers_since=answers_since)
    broker = BrokerChores(term, outbox, broker=settings.broker, knobs=knobs)
    lanes = [
        Lane([chores[name] for name in knobs.chores if name in chores], on_outage=ledger.outage)
        for chores in (ledger.chores(), broker.chores())
    ]
    if shards is not None:
        own = own_shard(settings.shards, settings.db).name
        lanes.append(Lane([strays_chore(shards, own, knobs=knobs)], on_outage=_is_not_ours))
    return Rounds(lanes, close=outbox.flush)


def _is_not_ours() -> None:
    """Another shard is away: what is to be taken there waits, and nothing else does."""


def main() -> None:
    """Run; a wrong setting ends with one sentence and status 2."""
    try:
        asyncio.run(keep())
    except FleetError as error:
        sys.stderr.write(f"fleet keeper: {error.message}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
