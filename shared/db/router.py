"""The nodes of one process: what is known of them, and where each unit of work goes."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, replace

import psycopg

from shared.db import tokens
from shared.db.decide import Decision, Lost, Wish, decide, refuted
from shared.db.facts import Cluster, Facts, NodeAddress
from shared.db.knobs import DbKnobs
from shared.db.pools import Pool
from shared.db.tokens import CausalToken
from shared.db.topology import Layout
from shared.db.view import PRIMARY_WAIT_S, View
from shared.errors import PrimaryLost, ReplicaStale
from shared.telemetry import db_metrics as metrics


class Node:
    """One node's pools: one that writes, for when it is the primary, and one that cannot, for when it is not."""

    def __init__(self, address: NodeAddress, knobs: DbKnobs, *, application_name: str) -> None:
        self.address = address
        self.writer = Pool(address, knobs, application_name=application_name, writes=True)
        self.reader = Pool(address, knobs, application_name=application_name, writes=False)

    @property
    def load(self) -> float:
        """How much of the readers' pool is in use."""
        return self.reader.in_use / self.reader.size

    async def close(self) -> None:
        """Close every connection."""
        await self.writer.close()
        await self.reader.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit of work opens its connection."""

    node: str
    pool: Pool
    decision: Decision
    facts: Facts | None
    timeline: int
    """The latest that was known by then: what is read here is of no later one."""
    is_replica: bool
    takes_overflow: bool = False


class Router:
    """Belongs to one event loop, from the first unit of work on."""

    def __init__(
        self, layout: Layout, knobs: DbKnobs, *, application_name: str, view: View | None = None
    ) -> None:  # fmt: skip
        self.layout = layout
        self.knobs = knobs
        self.nodes = {one.name: Node(one, knobs, application_name=application_name) for one in layout.nodes}
        self._preferred = layout.nodes[0].name
        self.view = view or View(layout, knobs, application_name=application_name)
        self.view.join(self._cut)
        self._overflow = asyncio.Semaphore(knobs.overflow)
        self._overflowing = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def cluster(self) -> Cluster:
        """What is known of the nodes."""
        return self.view.cluster

    @property
    def served(self) -> Counter[str]:
        """Reads by node, of the whole process."""
        return self.view.served

    @property
    def writer(self) -> Pool:
        """The pool that writes on the node last seen as the primary; on the configured one before any look."""
        primary = self.cluster.primary
        return self.nodes[primary.name if primary else self.view.led_by or self._preferred].writer

    def explain(self, wish: Wish, token: CausalToken | None) -> Decision:
        """What would be decided now."""
        if self.layout.rules.read != wish.reads or self.layout.rules.read_after_write == "primary":
            waits = wish.waits and self.layout.rules.read_after_write != "primary"
            wish = replace(wish, reads=self.layout.rules.read, waits=waits)
        rolls = (random.random(), random.random())
        return decide(wish, self.cluster, token, now=time.monotonic(), rolls=rolls, load=self._load)

    async def place(self, wish: Wish, token: CausalToken | None) -> Place:
        """Find a node, waiting where the wish says so; `release` it afterwards.

        Raises: PrimaryLost; ReplicaStale.
        """
        await self.ready()
        asked = "rw" if wish.mode == "rw" else wish.consistency
        decision = await self._decided(wish, token)
        if decision.lost is not None:
            metrics.TOKENS_LOST.labels(decision.lost).inc()
        if decision.verdict == "refuse" or decision.node is None:
            metrics.REFUSED.labels(asked).inc()
            raise self._refusal(wish, decision)
        takes_overflow = decision.verdict == "overflow"
        if takes_overflow:
            await self._take_overflow(wish, decision)
            if not self.view.leads(decision.node):  # any more: this has waited
                self._give_overflow_back()
                return await self.place(wish, token)
            metrics.OVERFLOWS.labels(asked).inc()
        metrics.UNITS.labels(decision.node, asked).inc()
        node = self.nodes[decision.node]
        is_replica = not self.view.leads(decision.node)
        pool = node.reader if is_replica else node.writer
        if wish.mode == "ro":
            self.served[decision.node] += 1
        facts, timeline = self.view.seen.get(decision.node), self.cluster.timeline
        return Place(decision.node, pool, decision, facts, timeline, is_replica, takes_overflow)

    def believed(self, given: CausalToken | None) -> CausalToken | None:
        """What a read must not fall behind: what the work under way has seen, and a stranger's token beside it.

        One of another cluster is no position here: it is counted, and displaces nothing.
        """
        found = None
        for token in (tokens.current(), given):
            if token is not None and self.cluster.system_id not in (None, token.system_id):
                metrics.TOKENS_LOST.labels("foreign").inc()
            else:
                found = tokens.merged(found, token)
        return found

    def refuse_demoted(self, name: str) -> None:
        """For a connection that is there by now, in its pool's care: had it been before, it would have been cut.

        Raises: psycopg.OperationalError when the node led and does not any more.
        """
        if self.view.is_demoted(name):
            raise psycopg.OperationalError(f"{name} does not lead any more")

    def release(self, place: Place) -> None:
        """A unit of work has ended."""
        if place.takes_overflow:
            self._give_overflow_back()

    async def ready(self) -> None:
        """See `View.ready`."""
        await self.view.ready()

    async def look_again(self, *, within_s: float = PRIMARY_WAIT_S) -> None:
        """Look at every node now."""
        await self.view.watch.look_again(within_s=within_s)

    async def doubt(self, name: str) -> None:
        """A unit of work could not open a connection there; see `View.doubt`."""
        await self.view.doubt(name)

    async def close(self) -> None:
        """Stop looking, close every connection."""
        await self.view.leave(self._cut)
        for node in self.nodes.values():
            await node.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _load(self, name: str) -> float:
        return self.nodes[name].load

    def _cut(self, name: str) -> None:
        writer = self.nodes[name].writer
        writer.cut()
        task = asyncio.get_running_loop().create_task(writer.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _decided(self, wish: Wish, token: CausalToken | None) -> Decision:
        """Decide; wait for a replica or for a primary where that may help, and ignore a token that cannot be true."""
        began = time.monotonic()
        decision = self.explain(wish, token)
        if decision.verdict == "wait" and decision.node is not None and token is not None:
            decision = await self._after_wait(decision.node, wish, token)
        if decision.verdict == "refuse":
            await self.view.watch.look_again(
                within_s=PRIMARY_WAIT_S, is_enough=lambda: self.explain(wish, token).verdict != "refuse"
            )
            decision = self.explain(replace(wish, waits=False), token)
        if token is None or decision.verdict == "go" or decision.lost is not None:
            return decision
        lost = await self._refuted(token, began)
        if lost is None:
            return decision
        tokens.forget(token)
        metrics.TOKENS_LOST.labels(lost).inc()
        return self.explain(wish, None)

    async def _refuted(self, token: CausalToken, began: float) -> Lost | None:
        """Whether anything can have happened where the token says; the primary's last look may be too old for that."""
        flushed = self.cluster.flushed
        if flushed and token.timeline == self.cluster.timeline and token.lsn > flushed[-1][1]:
            await self.view.watch.look_again(
                within_s=self.knobs.answer_timeout_s, is_enough=lambda: self.cluster.flushed[-1][0] >= began
            )
        return refuted(token, self.cluster, since=began)

    async def _after_wait(self, name: str, wish: Wish, token: CausalToken) -> Decision:
        met = await self.view.watch.until(
            lambda: self.explain(wish, token).verdict != "wait", within_s=self.knobs.causal_wait_s, hurry=name
        )
        metrics.WAITS.labels("reached" if met else "gave_up").inc()
        return self.explain(replace(wish, waits=False), token)

    async def _take_overflow(self, wish: Wish, decision: Decision) -> None:
        """Room on the primary for one more read that no replica takes; reads of any age get half of it.

        Raises: ReplicaStale.
        """
        patience_s = self.knobs.overflow_wait_s if wish.consistency == "causal" else 0.0
        limit = self.knobs.overflow if wish.consistency == "causal" else max(1, self.knobs.overflow // 2)
        if self._overflow.locked() or self._overflowing >= limit:
            try:
                if not patience_s:
                    raise TimeoutError
                async with asyncio.timeout(patience_s):
                    await self._overflow.acquire()
            except TimeoutError:
                metrics.REFUSED.labels(wish.consistency).inc()
                raise ReplicaStale(
                    f"{decision.reason.partition(':')[0]}, and {self._overflowing} such reads are on the primary",
                    retry_after_s=0.2,
                ) from None
        else:
            await self._overflow.acquire()
        self._overflowing += 1

    def _give_overflow_back(self) -> None:
        self._overflowing -= 1
        self._overflow.release()

    def _refusal(self, wish: Wish, decision: Decision) -> PrimaryLost | ReplicaStale:
        nodes = "; ".join(f"{one.name}: {one.why}" for one in self.cluster.standings)
        kind = PrimaryLost if wish.mode == "rw" or wish.consistency == "primary" else ReplicaStale
        return kind(f"{decision.reason} ({nodes})", retry_after_s=0.2)
