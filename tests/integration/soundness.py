"""What `fleet verify` says of a test's fleet: every fleet of the tests ends with it, whatever was done to it."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import DatabaseUnavailable
from shared.ledger.invariants import Patience, verify

GRACE_S = 15.0
SETTLE_S = 30.0
"""Seconds in which a fleet that a test has left in pieces may come to itself."""


def broken_promises(db_url: str, *, dead_after_s: float = 15.0) -> list[str]:
    """Every violation of an invariant; raises DatabaseUnavailable."""

    async def look() -> list[str]:
        database = Database(DbKnobs(url=db_url))
        try:
            verdicts = await verify(database, Patience(dead_after_s=dead_after_s, grace_s=GRACE_S))
        finally:
            await database.close()
        return [f"{one.promise}: {each.what}" for one in verdicts for each in one.violations]

    with ThreadPoolExecutor(1) as aside:  # the caller may have a loop of its own
        return aside.submit(asyncio.run, look()).result()


def assert_sound(db_url: str) -> None:
    """Every invariant of the ledger holds, or comes to hold, in a database that is there, or comes up again."""
    until = time.monotonic() + SETTLE_S
    while True:
        try:
            broken = broken_promises(db_url)
        except DatabaseUnavailable as error:
            broken = [f"nobody can say: {error.message}"]
        if not broken:
            return
        assert time.monotonic() < until, broken
        time.sleep(0.5)
