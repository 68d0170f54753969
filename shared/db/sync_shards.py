"""Units of work on the right shard, for threads without an event loop; see `Shards.unit`."""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from shared.db.database import Database
from shared.db.decide import Wish
from shared.db.shard_map import Home, ShardKey, bucket_for, check_here
from shared.db.shards import HOLD, LOOK, Shards, mark
from shared.db.sync_unit import OnTheLoop, SyncUnits
from shared.db.tokens import CausalToken
from shared.errors import ShardMoved

T = TypeVar("T")


class SyncShards:
    """The units of work of one process's threads on every shard.

    Args:
        shards: The shards; a coroutine of the loop on which they live.
        on_the_loop: Where it runs.
    """

    def __init__(self, shards: Callable[[], Coroutine[Any, Any, Shards]], *, on_the_loop: OnTheLoop) -> None:
        self._shards = shards
        self._on_the_loop = on_the_loop
        self._units: dict[str, SyncUnits] = {}

    def on(self, shard: str) -> SyncUnits:
        """The units of one shard."""
        units = self._units.get(shard)
        if units is None:

            def database() -> Database:
                return self._on_the_loop(self._shards()).databases[shard]

            units = SyncUnits(database, on_the_loop=self._on_the_loop, shards=self)
            units = self._units.setdefault(shard, units)
        return units

    def unit(self, wish: Wish, token: CausalToken | str | None, key: ShardKey) -> AbstractContextManager[Any]:
        """A unit on the key's shard. Raises: ShardMoved; CrossShard."""
        return self._unit(wish, token, bucket_for(key))

    def close(self) -> None:
        """Close every connection."""
        for units in self._units.values():
            units.close()

    @contextmanager
    def _unit(self, wish: Wish, token: CausalToken | str | None, bucket: int) -> Iterator[Any]:
        home = self._on_the_loop(self._home(bucket))
        try:
            with self.on(home.shard).unit(wish, token) as session:
                mark(session, bucket, home)
                if wish.mode == "rw":
                    check_here(session.scalar(HOLD, {"bucket": bucket}), bucket=bucket, here=home.shard, home=home)
                yield session
                if wish.mode == "ro":
                    check_here(session.scalar(LOOK, {"bucket": bucket}), bucket=bucket, here=home.shard, home=home)
        except ShardMoved:
            self._on_the_loop(self._doubt())
            raise

    async def _home(self, bucket: int) -> Home:
        shards = await self._shards()
        home = await shards.home_of(bucket)
        shards.known(home.shard)
        return home

    async def _doubt(self) -> None:
        (await self._shards()).doubt()
