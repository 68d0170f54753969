"""`python -m workers.keeper.main`: settings in, rounds until SIGTERM."""

import asyncio
import signal
import sys

import psycopg
import structlog

from shared.broker.publisher import Publisher
from shared.db.database import Database
from shared.errors import DatabaseUnavailable, FleetError
from shared.settings import load, load_room
from shared.telemetry.logs import setup_logs
from shared.telemetry.notify import notify
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.leadership import candidacy
from workers.keeper.rounds import Rounds

log = structlog.get_logger()


async def keep() -> None:
    """Lead, or wait to lead, until told to stop."""
    settings = load()
    setup_logs(style=settings.log.style, level=settings.log.level)
    knobs = load_room("keeper", KeeperKnobs)
    database = Database(settings.db, application_name="fleet-keeper")
    publisher = Publisher(settings.broker)
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    notify(settings.notify_socket)
    while not stop.is_set():
        rounds = Rounds(
            database=database, publisher=publisher, broker=settings.broker, ledger=settings.ledger, knobs=knobs
        )
        try:
            await _term(database, rounds, stop, round_s=knobs.round_s)
        except (DatabaseUnavailable, psycopg.Error, OSError) as error:
            log.warning("keeper.database_away", cause=str(error).splitlines()[0] if str(error) else repr(error))
            await _wait(stop, knobs.round_s)
    await asyncio.to_thread(publisher.close)
    await database.close()


async def _term(database: Database, rounds: Rounds, stop: asyncio.Event, *, round_s: float) -> None:
    was_leader = False
    async with candidacy(database) as leadership:
        while not stop.is_set():
            is_leader = await leadership.is_leader()
            if is_leader:
                if not was_leader:
                    log.info("keeper.leads")
                await rounds.round()
            was_leader = is_leader
            await _wait(stop, round_s)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def main() -> None:
    """Run; a wrong setting ends with one sentence and status 2."""
    try:
        asyncio.run(keep())
    except FleetError as error:
        sys.stderr.write(f"fleet keeper: {error.message}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
