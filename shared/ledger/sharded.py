"""One event loop's intakes to several shards: each task goes to its own, and is found there again when it has moved."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from shared.contracts import TaskMessage, bucket_in, with_bucket
from shared.db.database import Database
from shared.db.shard_map import check_here
from shared.db.shards import LOOK, READ_S, Shards
from shared.errors import CrossShard, ResultPending, ShardMoved, UnknownTask
from shared.ledger.intake import Intake
from shared.ledger.rows import TaskView
from shared.ledger.views import finished

T = TypeVar("T")

LOOK_AGAIN_S = 1.0
"""Seconds after which whoever waits for a result looks whether the task has moved."""
MOVED_WITHIN_S = 2.0
"""Seconds that work on a task waits while its bucket is between two shards."""
MOVING_S = 0.05
"""Seconds between two looks for a task that is on its way."""


class ShardedIntakes:
    """Belongs to one event loop; close it there.

    Args:
        intake_to: Makes the intake of a shard, given its database and its name.
    """

    def __init__(self, shards: Shards, intake_to: Callable[[Database, str], Intake]) -> None:
        self.shards = shards
        self._intake_to = intake_to
        self._intakes: dict[str, Intake] = {}

    def on(self, shard: str) -> Intake:
        """The intake of one shard."""
        intake = self._intakes.get(shard)
        if intake is None:
            intake = self._intakes[shard] = self._intake_to(self.shards.databases[shard], shard)
        return intake

    def all(self) -> tuple[Intake, ...]:
        """Those of all shards, in their order."""
        return tuple(self.on(shard) for shard in self.shards.databases)

    async def of(self, task_id: UUID) -> Intake:
        """The intake of the shard that has the task's bucket. Raises: ShardMoved when it is a shard not known here."""
        home = await self.shards.home_of(bucket_in(task_id), first_within_s=READ_S)
        return self.on(self.shards.known(home.shard))

    async def asking(self, task_id: UUID, work: Callable[[Intake], Awaitable[T]]) -> T:
        """Work on a task that exists; again with a new map when it is not where the map had it, or on its way.

        Raises: ShardMoved when it is on its way for long; UnknownTask.
        """
        until, was_unknown = time.monotonic() + MOVED_WITHIN_S, False
        while True:
            try:
                return await self._asking(task_id, work)
            except UnknownTask:
                if was_unknown:
                    raise
                was_unknown = True
            except ShardMoved:
                if time.monotonic() > until:
                    raise
            self.shards.doubt()
            await asyncio.sleep(MOVING_S)

    async def finished(self, task_id: UUID, *, timeout_s: float) -> TaskView:
        """Wait for a task's end, wherever it is meanwhile; see `views.finished`."""
        until = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            try:
                return await self._asking(task_id, partial(_finished, task_id, timeout_s=min(left_s, LOOK_AGAIN_S)))
            except (ResultPending, UnknownTask, ShardMoved):
                if left_s <= LOOK_AGAIN_S:
                    raise
                self.shards.doubt()
                await asyncio.sleep(MOVING_S)

    async def placed(self, message: TaskMessage, info: Mapping[Any, Any], *, own: str) -> TaskMessage:
        """The message for a producer's transaction, with an id of its bucket unless its session or key has one.

        Args:
            info: The session's; what `Shards.unit` noted there.
            own: The shard of a transaction that no unit with a key has opened.

        Raises: CrossShard when task and transaction are on different shards.
        """
        if "bucket" in info and message.fleet.session is None and message.fleet.idempotency_key is None:
            message = replace(message, id=with_bucket(message.id, info["bucket"]))
        there, home = info.get("shard", own), await self.shards.home_of(bucket_in(message.id))
        if home.shard != there:
            raise CrossShard(
                f"the task is for shard {home.shard} and the transaction is on {there}: open it as"
                " unit(shard_key=(tenant, session)), or submit without tx"
            )
        return message

    async def close(self) -> None:
        """Write what waits, then close the connections."""
        for intake in self._intakes.values():
            await intake.close()
        await self.shards.close()

    async def _asking(self, task_id: UUID, work: Callable[[Intake], Awaitable[T]]) -> T:
        """Only where the bucket is by the shard's own word: what was handed in elsewhere is not yet the task."""
        bucket = bucket_in(task_id)
        home = await self.shards.home_of(bucket)
        intake = self.on(self.shards.known(home.shard))
        async with intake.database.unit(mode="ro") as unit:
            state = await unit.scalar(LOOK, {"bucket": bucket})
        check_here(state, bucket=bucket, here=home.shard, home=home)
        return await work(intake)


async def _finished(task_id: UUID, intake: Intake, *, timeout_s: float) -> TaskView:
    return await finished(intake.database, task_id, timeout_s=timeout_s)
