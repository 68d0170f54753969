"""What is known of a process's nodes: kept up to date by looks, and told to whoever opens connections to them."""

import time
from collections import Counter
from collections.abc import Callable

import structlog
from sqlalchemy.engine import make_url

from shared.db.admission import Terms, conclude
from shared.db.facts import Cluster, Facts, Standing
from shared.db.knobs import DbKnobs
from shared.db.look import TELL_EVERY_S, Eye
from shared.db.pools import connect_args
from shared.db.topology import Layout
from shared.db.watch import Watch
from shared.telemetry import db_metrics as metrics

log = structlog.get_logger()

PRIMARY_WAIT_S = 2.0
"""Seconds a unit of work waits for looks to find a primary, when none is known."""


class View:
    """Belongs to one event loop, from the first unit of work on; one is enough for a process, however many routers."""

    def __init__(self, layout: Layout, knobs: DbKnobs, *, application_name: str) -> None:
        self.seen: dict[str, Facts | None] = {}
        """The last answer of each node that was looked at; None: it gave none."""
        self.cluster = Cluster(others=tuple(Standing(one.name, one.weight, None) for one in layout.nodes))
        self.served: Counter[str] = Counter()
        """Reads that this process has sent to each node."""
        self._told: Counter[str] = Counter()
        self._told_at = time.monotonic()
        self.led_by: str | None = None
        """The last primary that was seen."""
        self._on_demoted: list[Callable[[str], None]] = []
        self._demoted: set[str] = set()
        self._is_ready = False
        self._preferred = layout.nodes[0].name
        self._knobs = knobs
        self._terms = Terms(max_lag_s=knobs.max_lag_s, return_after_s=knobs.return_after_s)
        parameters = connect_args(knobs, application_name=application_name, is_direct=True)
        eyes = {
            node.name: Eye(
                make_url(node.direct_url or node.url), process=application_name, parameters=parameters,
                limit_s=knobs.answer_timeout_s,
            )
            for node in layout.nodes
        }  # fmt: skip
        self.watch = Watch(
            eyes, every_s=knobs.look_every_s, silent_after_s=knobs.answer_timeout_s + 2 * knobs.look_every_s,
            on_look=self._note, on_primary=self._tend,
        )  # fmt: skip

    def leads(self, name: str) -> bool:
        """Whether it is the primary."""
        return self.cluster.primary is not None and self.cluster.primary.name == name

    async def ready(self) -> None:
        """Begin to look at the nodes; return once there is a primary, or every node has been looked at."""
        if self._is_ready:
            return
        if not self.watch.is_running:
            self.watch.start()
        await self.watch.look_again(
            within_s=self._knobs.connect_timeout_s + self._knobs.answer_timeout_s,
            is_enough=lambda: self.cluster.primary is not None and len(self.seen) == len(self.cluster.standings),
        )
        self._is_ready = True

    def is_standby(self, name: str, *, since: float) -> bool:
        """Whether a node has said, after that moment, that it is a standby."""
        facts = self.seen.get(name)
        return facts is not None and facts.seen_at >= since and not facts.is_primary

    def is_demoted(self, name: str) -> bool:
        """Whether it led, and is known not to lead any more."""
        return name in self._demoted

    async def doubt(self, name: str) -> None:
        """Nobody could open a connection there: forget what was known, and look again."""
        self._note(name, None)
        await self.watch.look_again(within_s=PRIMARY_WAIT_S, is_enough=lambda: self.seen.get(name) is not None)

    def join(self, on_demoted: Callable[[str], None]) -> None:
        """Use it, until `leave`; be told the name of a node that led and does not any more."""
        self._on_demoted.append(on_demoted)

    async def leave(self, on_demoted: Callable[[str], None]) -> None:
        """Stop looking when nobody is left."""
        if on_demoted in self._on_demoted:
            self._on_demoted.remove(on_demoted)
        if not self._on_demoted:
            await self.watch.close()

    def _note(self, name: str, facts: Facts | None) -> bool:
        """A look has ended. Returns: Whether this node is the primary."""
        before = self.cluster.primary
        self.seen |= dict.fromkeys(self.watch.silence.overdue)
        self.seen[name] = facts
        self.cluster = conclude(
            self.cluster, self.seen, terms=self._terms, now=time.monotonic(), preferred=self._preferred
        )  # fmt: skip
        if before is not None and not self.leads(before.name):
            why = next(one.why for one in self.cluster.standings if one.name == before.name)
            log.warning("db.primary_gone", node=before.name, cause=why)
        self._follow()
        self._measure(name, facts)
        return self.leads(name)

    async def _tend(self, eye: Eye, facts: Facts) -> None:
        """What the primary is told: that time passes there, and where reads went."""
        await eye.beat(facts)
        now = time.monotonic()
        lately = self.served - self._told
        if lately and now - self._told_at >= TELL_EVERY_S and await eye.tell(lately):
            self._told, self._told_at = self._told + lately, now

    def _follow(self) -> None:
        """Whoever led and is known not to lead any more is told of at once; silence says nothing."""
        was, now = self.led_by, self.cluster.primary
        if now is not None:
            self._demoted.discard(now.name)
        if now is not None and now.name != was:
            self.led_by = now.name
            if was is not None:
                metrics.FAILOVERS.inc()
            log.info("db.primary_seen", node=now.name, timeline=self.cluster.timeline)
        if was is None or was in self._demoted or self.leads(was):
            return
        facts = self.seen.get(was)
        if now is not None or (facts is not None and (not facts.is_primary or facts.timeline < self.cluster.timeline)):
            self._demoted.add(was)
            for tell in self._on_demoted:
                tell(was)

    def _measure(self, name: str, facts: Facts | None) -> None:
        standing = next(one for one in self.cluster.standings if one.name == name)
        metrics.ADMITTED.labels(name).set(standing.is_admitted)
        is_primary = self.leads(name)
        metrics.PRIMARY.labels(name).set(is_primary)
        if facts is not None and not is_primary:
            lag_s = self.cluster.lag_s(facts, now=time.monotonic())
            metrics.LAG_SECONDS.labels(name).set(float("inf") if lag_s is None else lag_s)
            if self.cluster.flushed:
                metrics.LAG_BYTES.labels(name).set(max(0, self.cluster.flushed[-1][1] - facts.lsn))
