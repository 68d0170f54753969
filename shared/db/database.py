"""The process's door to PostgreSQL: units of work on the right node, and driver connections to the primary."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, overload

import psycopg
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.db import carriage, tokens
from shared.db.absence import is_absent
from shared.db.decide import Consistency, Mode, Wish
from shared.db.knobs import DbKnobs
from shared.db.link import Link
from shared.db.pools import Pool, connect_args, is_unavailable
from shared.db.router import Router
from shared.db.sessions import ReadSession, WriteSession
from shared.db.shard_map import ShardKey
from shared.db.shards_file import own_layout
from shared.db.tokens import CausalToken
from shared.db.topology import Layout
from shared.db.unit import on_a_chosen_node, on_the_only_node, outer_session
from shared.errors import DatabaseUnavailable, ReplicaStale

__all__ = ["Database", "connect_args", "is_unavailable"]


class ShardUnits(Protocol):
    """All shards of the fleet, of which a database is one."""

    def unit(self, key: ShardKey, **how: Any) -> AbstractAsyncContextManager[Any]:
        """A unit of work on the shard of that key."""


class Database:
    """The nodes of one cluster. Belongs to one event loop; with a single node nothing is looked up and nothing chosen.

    Args:
        layout: The nodes; else those of the settings.
        beside: Another one of the same nodes, whose looks serve for both; each has connections of its own.
        shards: For units of work with a `shard_key`; None: everything is here.

    Raises: Misconfigured for a configuration file that does not hold.
    """

    def __init__(
        self, knobs: DbKnobs, *, application_name: str = "fleet", layout: Layout | None = None,
        shards: ShardUnits | None = None, beside: "Database | None" = None,
    ) -> None:  # fmt: skip
        self.knobs = knobs
        self.shards = shards
        self._connect_args = connect_args(knobs, application_name=application_name, is_direct=True)
        layout = layout or own_layout(knobs)
        self.router: Router | None = None
        if len(layout.nodes) > 1:
            view = beside.router.view if beside is not None and beside.router is not None else None
            self.router = Router(layout, knobs, application_name=application_name, view=view)
        else:
            self._pool = Pool(layout.nodes[0], knobs, application_name=application_name, writes=True)

    @property
    def pool(self) -> Pool:
        """The connections that write: of the only node, or of the one that was last seen to be the primary."""
        return self._pool if self.router is None else self.router.writer

    @property
    def engine(self) -> AsyncEngine:
        """The engine of `pool`: ask for it anew each time, a failover changes it."""
        return self.pool.engine

    @property
    def url(self) -> URL:
        """Where `pool` leads."""
        return self.pool.url

    @overload
    def unit(
        self, *, mode: Literal["rw"] = "rw", consistency: Literal["primary"] = "primary",
        shard_key: ShardKey | None = None,
    ) -> AbstractAsyncContextManager[WriteSession]: ...  # fmt: skip

    @overload
    def unit(
        self, *, mode: Literal["ro"], consistency: Consistency = "primary", max_staleness_s: float | None = None,
        token: CausalToken | str | None = None, shard_key: ShardKey | None = None,
    ) -> AbstractAsyncContextManager[ReadSession]: ...  # fmt: skip

    def unit(
        self, *, mode: Mode = "rw", consistency: Consistency = "primary", max_staleness_s: float | None = None,
        token: CausalToken | str | None = None, shard_key: ShardKey | None = None,
    ) -> AbstractAsyncContextManager[Any]:  # fmt: skip
        """A session on one connection to one node; commits at the end of `rw`, rolls back on an exception.

        Inside another unit of the same task it is that unit: it ends with the outer one, which must see as much.

        Args:
            mode: `rw`; or `ro` for a transaction that cannot write, whatever its node becomes meanwhile.
            consistency: What `ro` may see. `primary`: what the primary has. `causal`: at least what `token` and the
                work under way have written and seen. `bounded`: nothing older than `max_staleness_s`. `eventual`:
                whatever an admitted replica has. All but `primary` may be served by replicas.
            shard_key: A task's id, a session, or (tenant, session): whose shard it is on. None: this one.
            token: As a stranger's header has it, or from `tokens.current()`; text that is none is ignored.

        Raises: DatabaseUnavailable when the server cannot be reached or drops the connection; its kinds PrimaryLost,
            PoolExhausted, and CommitUnknown when nobody knows whether it was committed. ReplicaStale when no node may
            serve the read as fresh as asked. ReadOnlyUnit for a write in `ro`. With several shards, ShardMoved when the
            key's bucket has just moved: the next unit finds it; CrossShard inside a unit on another shard.
        """
        wish = Wish.checked(mode, consistency, max_staleness_s)
        if shard_key is not None and self.shards is not None:
            return self.shards.unit(
                shard_key, mode=mode, consistency=consistency, max_staleness_s=max_staleness_s, token=token
            )
        given = carriage.read(token, source="unit") if isinstance(token, str) else token
        outer = outer_session(self, wish, lambda: self.believed(given))
        if outer is not None:
            return _Joined(outer)
        if self.router is None:
            return on_the_only_node(self, wish, given)
        return on_a_chosen_node(self, self.router, wish, given)

    def believed(self, given: CausalToken | None) -> CausalToken | None:
        """What a read must not fall behind, when a stranger gives this token; see `Router.believed`."""
        if self.router is None:
            return tokens.merged(tokens.current(), given)
        return self.router.believed(given)

    async def direct(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """A driver connection to the primary in autocommit, for a loop that keeps it: the caller closes it.

        Raises: psycopg.OperationalError when the server cannot be reached, or none takes writes.
        """
        pool, router = self.pool, self.router
        name = None
        if router is not None:
            try:
                place = await router.place(Wish(), None)
            except (DatabaseUnavailable, ReplicaStale) as error:
                raise psycopg.OperationalError(error.message) from error
            pool, name = place.pool, place.node
        try:
            link = await self.link_to(pool.direct_url)
        except psycopg.OperationalError:
            if router is not None and name is not None:
                await router.doubt(name)
            raise
        pool.kept.add(link)
        if router is not None and name is not None and (link.is_standby or router.view.is_demoted(name)):
            await link.close()
            await router.doubt(name)
            raise psycopg.OperationalError(f"{name} does not lead any more")
        return link

    async def is_absent(self, *, within_s: float) -> bool:
        """Whether certainly nobody is served writes now, as opposed to a server that is silent.

        With several nodes: each refuses, or says that it is a standby.
        """
        router = self.router
        if router is None:
            return await is_absent(self.pool.direct_url, within_s=within_s)

        async def serves_no_writes(name: str) -> bool:
            if await is_absent(router.nodes[name].writer.direct_url, within_s=within_s):
                return True
            return router.view.is_standby(name, since=asked_at)

        asked_at = time.monotonic()
        await router.ready()
        await router.look_again(within_s=within_s)
        return all(await asyncio.gather(*(serves_no_writes(name) for name in router.nodes)))

    async def close(self) -> None:
        """Close every connection."""
        await (self._pool.close() if self.router is None else self.router.close())

    async def link_to(self, url: URL, *, limit_s: float | None = None) -> Link:
        """A driver connection in autocommit, past every pool; the caller closes it.

        Args:
            limit_s: For each exchange; without it as long as a statement may take.
        """
        return await Link.open(
            limit_s=limit_s or self.knobs.statement_timeout_s + self.knobs.answer_timeout_s,
            host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database,
            autocommit=True, **self._connect_args,
        )  # fmt: skip


class _Joined:
    """A unit inside a unit: the outer one begins and ends it."""

    def __init__(self, session: WriteSession | ReadSession) -> None:
        self._session = session

    async def __aenter__(self) -> WriteSession | ReadSession:
        return self._session

    async def __aexit__(self, *_: object) -> None:
        """Nothing: the outer unit ends it."""
