"""One process's ways into the ledger: an intake per event loop, and a loop of its own for threads that have none."""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.sync_unit import SyncUnits
from shared.ledger.intake import Intake
from shared.ledger.knobs import LedgerKnobs
from shared.resilience.portal import Portal

T = TypeVar("T")

HOOKS_WITHIN_S = 2.0
"""Seconds that a closing client gives its commit hooks to publish; what they leave, the keeper publishes."""


class Doors:
    """Safe from any thread and loop, and after a fork."""

    def __init__(self, db: DbKnobs, ledger: LedgerKnobs, broker: BrokerKnobs) -> None:
        self._db = db
        self._ledger = ledger
        self._broker = broker
        self._open()

    @property
    def units(self) -> SyncUnits:
        """Units of work for threads without a loop."""
        self._check_fork()
        return self._units

    def here(self) -> Intake:
        """The intake of the running loop."""
        self._check_fork()
        loop = asyncio.get_running_loop()
        door = self._intakes.get(loop)
        if door is None:
            door = self._intakes[loop] = Intake(self._db, self._ledger, self._publisher)
        return door

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop of this process's own, for a caller in a thread."""
        self._check_fork()
        return self._portal.run(work)

    def publish_later(self, message: TaskMessage) -> None:
        """Publish a task whose transaction is being committed; nobody waits for it."""
        self._portal.spawn(lambda: self.here().publish_committed(message))

    def close(self) -> None:
        """Send what waits and close the connections that threads opened."""
        self._units.close()
        if self._portal.is_running:
            self.wait(self._close_portal())
        self._portal.stop()
        self._publisher.close()

    async def aclose(self) -> None:
        """Close the connections that the running loop opened."""
        door = self._intakes.pop(asyncio.get_running_loop(), None)
        if door is not None:
            await door.close()

    async def _close_portal(self) -> None:
        await self._portal.settled(HOOKS_WITHIN_S)  # before the connections that they use
        await self.aclose()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._publisher = Publisher(self._broker)
        self._portal = Portal()
        self._intakes: WeakKeyDictionary[asyncio.AbstractEventLoop, Intake] = WeakKeyDictionary()
        self._units = SyncUnits(self._database, on_the_loop=self.wait)

    def _check_fork(self) -> None:
        if os.getpid() != self._pid:  # forked (gunicorn, uWSGI): threads and sockets stayed with the parent
            self._open()

    def _database(self) -> Database:
        async def here() -> Database:
            return self.here().database

        return self.wait(here())
