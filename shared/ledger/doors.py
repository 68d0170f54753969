"""One process's ways into the ledger: an intake per event loop and shard, and a loop for threads that have none."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.decide import Wish
from shared.db.knobs import DbKnobs
from shared.db.pools import process_name
from shared.db.shard_map import ShardKey
from shared.db.shards import Shards
from shared.db.shards_file import ShardAddress, own_shard
from shared.db.sync_shards import SyncShards
from shared.db.sync_unit import SyncUnits
from shared.db.tokens import CausalToken
from shared.errors import Misconfigured
from shared.ledger.intake import Intake
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.rows import TaskView
from shared.ledger.sharded import ShardedIntakes
from shared.ledger.views import finished
from shared.resilience.portal import Portal

T = TypeVar("T")

HOOKS_WITHIN_S = 2.0
"""Seconds that a closing client gives its commit hooks to publish; what they leave, the keeper publishes."""


class Doors:
    """Safe from any thread and loop, and after a fork.

    Args:
        shards: Every shard, when there are several.
    """

    def __init__(
        self, db: DbKnobs, ledger: LedgerKnobs, broker: BrokerKnobs, shards: tuple[ShardAddress, ...] = ()
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._broker = broker
        self._shards = shards
        self._own = own_shard(shards, db).name if shards else ""
        self._open()

    def unit(
        self, wish: Wish, token: CausalToken | str | None, shard_key: ShardKey | None
    ) -> AbstractContextManager[Any]:
        """A unit of work for a thread without a loop."""
        self._check_fork()
        if self._sharded is None:
            return self._units.unit(wish, token)
        if shard_key is None:
            return self._sharded.on(self._own).unit(wish, token)
        return self._sharded.unit(wish, token, shard_key)

    def here(self) -> Intake:
        """The running loop's intake to the only shard, or to this process's own."""
        self._check_fork()
        if self._shards:
            return self._all_here().on(self._own)
        loop = asyncio.get_running_loop()
        door = self._intakes.get(loop)
        if door is None:
            database = Database(self._db, application_name=process_name("fleet-client"))
            door = self._intakes[loop] = Intake(database, self._ledger, self._publisher)
        return door

    async def of(self, task_id: UUID) -> Intake:
        """The intake of the shard on which the task is, or is to be."""
        return await self._all_here().of(task_id) if self._shards else self.here()

    async def asking(self, task_id: UUID, work: Callable[[Intake], Awaitable[T]]) -> T:
        """Work on a task that exists, on the shard that has it."""
        return await (self._all_here().asking(task_id, work) if self._shards else work(self.here()))

    async def all_shards(self) -> Shards:
        """Every shard. Raises: Misconfigured when there is but one."""
        if not self._shards:
            raise Misconfigured(
                "There is one shard: name several in a file, as in deploy/shards.example.yaml, and set FLEET_DB_SHARDS",
                variable="FLEET_DB_SHARDS",
            )
        return self._all_here().shards

    async def finished(self, task_id: UUID, *, timeout_s: float) -> TaskView:
        """Wait for a task's end; see `views.finished`."""
        if self._shards:
            return await self._all_here().finished(task_id, timeout_s=timeout_s)
        return await finished(self.here().database, task_id, timeout_s=timeout_s)

    def everywhere(self) -> tuple[Intake, ...]:
        """The intakes of all shards."""
        return self._all_here().all() if self._shards else (self.here(),)

    async def placed(self, message: TaskMessage, session: Any) -> TaskMessage:
        """The message, with an id of the shard on which a producer's transaction is. Raises: CrossShard."""
        return await self._all_here().placed(message, session.info, own=self._own) if self._shards else message

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop of this process's own, for a caller in a thread."""
        self._check_fork()
        return self._portal.run(work)

    def publish_later(self, message: TaskMessage) -> None:
        """Publish a task whose transaction is being committed; nobody waits for it."""

        async def publish() -> None:
            await (await self.of(message.id)).publish_committed(message)

        self._portal.spawn(publish)

    def close(self) -> None:
        """Send what waits and close the connections that threads opened."""
        self._units.close()
        if self._sharded is not None:
            self._sharded.close()
        if self._portal.is_running:
            self.wait(self._close_portal())
        self._portal.stop()
        for publisher in (self._publisher, *self._publishers.values()):
            publisher.close()

    async def aclose(self) -> None:
        """Close the connections that the running loop opened."""
        loop = asyncio.get_running_loop()
        for door in (self._intakes.pop(loop, None), self._loops.pop(loop, None)):
            if door is not None:
                await door.close()

    async def _close_portal(self) -> None:
        await self._portal.settled(HOOKS_WITHIN_S)  # before the connections that they use
        await self.aclose()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._publisher = Publisher(self._broker)
        self._publishers: dict[str, Publisher] = {}
        self._portal = Portal()
        self._intakes: WeakKeyDictionary[asyncio.AbstractEventLoop, Intake] = WeakKeyDictionary()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, ShardedIntakes] = WeakKeyDictionary()
        self._units = SyncUnits(self._database, on_the_loop=self.wait)
        self._sharded = SyncShards(self.all_shards, on_the_loop=self.wait) if self._shards else None

    def _check_fork(self) -> None:
        if os.getpid() != self._pid:  # forked (gunicorn, uWSGI): threads and sockets stayed with the parent
            self._open()

    def _database(self) -> Database:
        async def here() -> Database:
            return self.here().database

        return self.wait(here())

    def _all_here(self) -> ShardedIntakes:
        self._check_fork()
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            shards = Shards(self._shards, self._db, application_name=process_name("fleet-client"))
            found = self._loops[loop] = ShardedIntakes(shards, self._intake_to)
        return found

    def _intake_to(self, database: Database, shard: str) -> Intake:
        publisher = self._publisher if shard == self._own else self._publishers.get(shard)
        if publisher is None:
            url = next(one.broker_url for one in self._shards if one.name == shard)
            publisher = self._publishers.setdefault(shard, Publisher(replace(self._broker, url=url)))
        return Intake(database, self._ledger, publisher)
