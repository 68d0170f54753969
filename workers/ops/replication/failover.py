"""A failover of PostgreSQL on this machine: fence, promote, re-point, take back - in this order, each part timed."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from workers.ops.probes import NotReady
from workers.ops.replication.choice import Choice, Question, choose
from workers.ops.replication.gathering import Gathering, point
from workers.ops.replication.group import Group
from workers.ops.replication.look import Look, look
from workers.ops.replication.node import Node
from workers.ops.replication.refusals import FailoverRefused, FailoverUnderWay, FailoverUnfinished
from workers.ops.replication.standing import equip, promote
from workers.ops.replication.yielding import forsake, last_lsn
from workers.ops.supervisor import Supervisor

Say = Callable[[str, str], None]
"""Takes the part under way and a sentence."""

PRIMARY, REPLICA = "PostgreSQL primary", "PostgreSQL replica"
POLL_S = 0.01
ANY = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the operator asks for."""

    to: str | None = None
    """The node to promote; None: the most advanced replica."""

    force: bool = False
    """Whether acknowledged writes may be lost."""

    rejoin: bool = True
    """Whether the old primary is taken back at once; otherwise it stays fenced and down."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a failover did."""

    old: str
    new: str
    reason: str
    """Why this one."""

    term: int = 0
    timeline: int | None = None
    fenced: str = ""
    """How the old primary was ended."""

    lossless: bool = False
    """Whether the new primary is known to have every acknowledged write."""

    followers: dict[str, str] = field(default_factory=dict)
    """Every other node and how it follows."""

    seconds: dict[str, float] = field(default_factory=dict)
    """detect, fence, drain, promote, follow, rejoin; `writable` is the time until the new primary took writes."""


class Failover:
    """One at a time; `run` goes on to its end even when whoever asked has gone."""

    def __init__(self, group: Group, *, supervisor: Supervisor, say: Say | None = None) -> None:
        self.group = group
        self._supervisor = supervisor
        self._say = say or (lambda part, sentence: None)
        self._lock = asyncio.Lock()

    async def run(self, wish: Wish, *, say: Say | None = None) -> Outcome:
        """Fail over.

        Raises: FailoverRefused and its kinds when nothing was changed; FailoverUnfinished; Misconfigured.
        """
        if self._lock.locked():
            raise FailoverUnderWay("Another failover is under way; wait for its end.")
        async with self._lock:
            return await _Run(self.group, supervisor=self._supervisor, wish=wish, say=say or self._say).run()


class _Run:
    def __init__(self, group: Group, *, supervisor: Supervisor, wish: Wish, say: Say) -> None:
        self._group, self._supervisor, self._wish, self._say = group, supervisor, wish, say
        self._knobs = group.knobs
        self._old = group.leader
        self._last_lsn: int | None = None
        self._out = Outcome(old=self._old.name, new="", reason="")

    async def run(self) -> Outcome:
        began = time.monotonic()
        with self._timed("detect"):
            looks = await self._looks()
            resumed = looks[self._old.name].answers and looks[self._old.name].is_standby
            choice = self._resumption() if resumed else self._choose(looks)
        self._say("detect", f"{self._old.name}: {_state(looks[self._old.name])}; {choice.node}: {choice.reason}")
        if not resumed:
            with self._timed("fence"):
                await self._fence(looks)
            with self._timed("drain"):
                choice = await self._choose_again(looks)
        with self._timed("promote"):
            await self._promote(choice, crown=not resumed)
        self._out.seconds["writable"] = round(time.monotonic() - began, 4)
        self._say("promote", f"{choice.node} takes writes on timeline {self._out.timeline}")
        self._describe(self._group.node(choice.node))
        await self._gather_others()
        return self._out

    async def _looks(self, known: dict[str, Look] | None = None) -> dict[str, Look]:
        """Ask all nodes, or those again that are known to answer."""
        asked = [node for node in self._group.nodes if known is None or known[node.name].answers]
        found = await asyncio.gather(*(look(node, within_s=self._knobs.look_s) for node in asked))
        return (known or {}) | {one.name: one for one in found}

    def _resumption(self) -> Choice:
        if self._wish.to not in (None, self._old.name):
            raise FailoverRefused(f"A failover to {self._old.name} has not ended; end it first, without --to.")
        return Choice(node=self._old.name, reason="an earlier failover to it goes on")

    def _choose(self, looks: dict[str, Look], *, max_behind_bytes: int | None = None) -> Choice:
        barred = frozenset(node.name for node in self._group.nodes if node.is_fenced)
        return choose(
            Question(
                looks=looks, leader=self._old.name, barred=barred, to=self._wish.to, force=self._wish.force,
                synchronous=self._group.synchronous and not self._has_all(looks),
                max_behind_bytes=self._knobs.max_behind_bytes if max_behind_bytes is None else max_behind_bytes,
            )
        )  # fmt: skip

    def _has_all(self, looks: dict[str, Look]) -> bool:
        """Whether a replica has even the last record that the old primary wrote, which it wrote in stopping."""
        return self._last_lsn is not None and any(one.is_standby and one.lsn > self._last_lsn for one in looks.values())

    async def _fence(self, looks: dict[str, Look]) -> None:
        """Marks first, so that whatever starts it again starts a standby; then no process of it is left."""
        self._old.fence(f"fenced {time.strftime('%F %T %z')} for a successor")
        server = self._supervisor.server(self._old.name)
        runs = server.child is not None and not server.child.exited.is_set()
        patience_s = self._knobs.polite_s if looks[self._old.name].answers else 0.0
        if patience_s:
            with contextlib.suppress(NotReady):
                await forsake(self._old, [one.name for one in looks.values() if not one.answers], within_s=patience_s)
        try:
            async with asyncio.timeout(patience_s + self._knobs.kill_s):
                await server.stop(patience_s=patience_s)
        except TimeoutError:
            raise FailoverUnfinished(
                f"{self._old.name} cannot be ended: a process of it outlives SIGKILL; nothing was promoted.",
                node=self._old.name,
            ) from None
        self._last_lsn = await last_lsn(self._group, self._old) if patience_s else None
        self._out.fenced = ("killed" if self._last_lsn is None else "stopped in order") if runs else "was down"
        self._say("fence", f"{self._old.name} {self._out.fenced}; it can start only as a standby")

    async def _choose_again(self, before: dict[str, Look]) -> Choice:
        """By what the replicas have on disk now that nothing is sent any more. Gives the lead back if none is fit."""
        end = time.monotonic() + self._knobs.drain_s
        before = {**before, self._old.name: Look(name=self._old.name, answers=False, detail="it is fenced")}
        while True:
            looks = await self._looks(before)
            receiving = [one for one in looks.values() if one.answers and one.timeline is not None]
            if not receiving or time.monotonic() > end:
                break
            await asyncio.sleep(POLL_S)
        try:
            choice = self._choose(looks, max_behind_bytes=ANY)
        except FailoverRefused as refusal:
            await self._give_back()
            raise type(refusal)(f"{refusal.message} {self._old.name} leads again.", **refusal.context) from refusal
        fit = (one for one in looks.values() if one.is_standby and not self._group.node(one.name).is_fenced)
        best = max(fit, key=lambda one: one.lsn)
        behind = looks[choice.node].lsn < best.lsn and not await self._catch_up(choice.node, best=best)
        if behind and not self._wish.force:
            choice, behind = Choice(node=best.name, reason=f"{choice.node} could not catch up with it"), False
        seen = all(one.answers for one in looks.values() if one.name != self._old.name)
        self._out.lossless = not behind and (self._has_all(looks) or (self._group.synchronous and seen))
        return choice

    async def _catch_up(self, name: str, *, best: Look) -> bool:
        """Let a replica fetch from a more advanced one what the primary did not send it any more."""
        node = self._group.node(name)
        settings = self._group.settings_of(node, behind=self._group.node(best.name))
        point(self._supervisor, node, {**settings, "primary_slot_name": ""})
        end = time.monotonic() + self._knobs.catch_up_s
        while time.monotonic() < end:
            seen = await look(node, within_s=self._knobs.look_s)
            if seen.answers and seen.lsn >= best.lsn:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _give_back(self) -> None:
        self._old.set_standby(False)
        self._old.lift_fence()
        await self._supervisor.start(self._old.name)

    async def _promote(self, choice: Choice, *, crown: bool) -> None:
        new = self._group.node(choice.node)
        if crown:
            try:
                self._group.crown(new.name)  # from here on no start of the old one makes it a primary
            except OSError as error:
                await self._give_back()
                raise FailoverRefused(
                    f"The note of who leads cannot be written: {error}. {self._old.name} leads again."
                ) from error
        self._out.new, self._out.reason = choice.node, choice.reason
        self._out.term = self._group.leadership().term
        try:
            self._out.timeline = await promote(self._group, new)
        except NotReady as error:
            raise FailoverUnfinished(
                f"{self._old.name} is fenced and {new.name} has not confirmed its promotion ({error}); "
                "run `fleet failover db` again to go on.",
                node=new.name,
            ) from error

    def _describe(self, new: Node) -> None:
        """Who needs whom, from now on: what needed the old primary is stopped before the new one."""
        names = {node.name for node in self._group.nodes}
        for name, spec in self._supervisor.specs().items():
            if name in names:
                leads = name == new.name
                now = replace(spec, kind=PRIMARY if leads else REPLICA, needs=() if leads else (new.name,))
                self._supervisor.describe(replace(now, preparations=()))
                continue
            needs = tuple(dict.fromkeys(new.name if need == self._out.old else need for need in spec.needs))
            env = {**spec.env, **self._group.addresses()} if "FLEET_DB_URL" in spec.env else spec.env
            self._supervisor.describe(replace(spec, needs=needs, env=env))

    async def _gather_others(self) -> None:
        behind = Gathering(group=self._group, supervisor=self._supervisor, timeline=self._out.timeline)
        fenced = [node for node in self._group.followers if node.is_fenced]
        others = [node for node in self._group.followers if not node.is_fenced]
        with self._timed("follow"):
            with contextlib.suppress(NotReady):  # its next start does it, and the others go on trying
                await equip(self._group, self._group.leader)
            for node, how in zip(others, await asyncio.gather(*map(behind.re_point, others)), strict=True):
                self._note("follow", node, how)
        for node in fenced:
            if not self._wish.rejoin:
                self._out.followers[node.name] = "fenced, down"
                continue
            with self._timed("rejoin"):
                self._note("rejoin", node, await behind.take_back(node))

    def _note(self, part: str, node: Node, how: str) -> None:
        self._out.followers[node.name] = how
        self._say(part, f"{node.name}: {how}")

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._out.seconds[part] = round(time.monotonic() - began, 4)


def _state(seen: Look) -> str:
    if not seen.answers:
        return seen.detail
    return "a standby" if seen.is_standby else f"answers as a primary on timeline {seen.timeline}"
