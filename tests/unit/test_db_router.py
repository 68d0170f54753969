"""The router over nodes that only say what they are: who leads, who is cut off, what falls on the primary, and when."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from structlog.testing import capture_logs

from shared.db import router as routing
from shared.db import view as viewing
from shared.db.decide import Wish
from shared.db.facts import Facts, NodeAddress
from shared.db.knobs import DbKnobs
from shared.db.link import Honest
from shared.db.router import Place, Router
from shared.db.tokens import CausalToken, carrying
from shared.db.topology import Layout
from shared.db.unit import holds_for
from shared.errors import PrimaryLost, ReplicaStale
from shared.telemetry import db_metrics as metrics

SYSTEM = 7
CAUSAL = Wish("ro", "causal")
Say = Callable[[], Facts | None]


def leads(*, timeline: int = 1, lsn: int = 100, system_id: int = SYSTEM) -> Facts:
    return Facts(0.0, is_primary=True, system_id=system_id, timeline=timeline, lsn=lsn, clock_s=1.0, beat_s=0.0)


def follows(*, timeline: int = 1, lsn: int = 100) -> Facts:
    return Facts(
        0.0, is_primary=False, system_id=SYSTEM, timeline=timeline, lsn=lsn, is_streaming=True, receiver="streaming"
    )


class Nodes:
    """What each node says of itself, if anything; and who was given a heartbeat."""

    def __init__(self, **says: Facts | None) -> None:
        self.says = dict(says)
        self.beats: list[str] = []
        self.told: list[dict[str, int]] = []
        self.is_told = True
        self.slow: set[str] = set()
        """Those that answer only when it `is_open`."""
        self.is_open = asyncio.Event()
        self.is_frozen = False
        """Whether no heartbeat is answered either."""

    def eye(self, url: Any, **_: Any) -> "FakeEye":
        return FakeEye(self, url.host)


class FakeEye:
    """Stands for `shared.db.look.Eye`."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes, self.name = nodes, name

    is_connected = True

    async def look(self) -> Facts | None:
        began = monotonic()
        if self.name in self.nodes.slow:
            await self.nodes.is_open.wait()
        facts = self.nodes.says[self.name]
        return None if facts is None else replace(facts, seen_at=began)

    async def beat(self, _seen: Facts) -> None:
        self.nodes.beats.append(self.name)
        if self.nodes.is_frozen:
            await self.nodes.is_open.wait()

    async def tell(self, reads: Mapping[str, int]) -> bool:
        self.nodes.told.append(dict(reads))
        return self.nodes.is_told

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def router_over(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, **knobs: Any) -> AsyncIterator[Router]:
    monkeypatch.setattr(viewing, "Eye", nodes.eye)
    url = "postgresql+psycopg://fleet@{}:1/fleet"
    layout = Layout(tuple(NodeAddress(name, url.format(name)) for name in nodes.says))
    how: dict[str, Any] = {"look_every_s": 0.01, "overflow_wait_s": 0.05, "causal_wait_s": 0.01, **knobs}
    router = Router(layout, DbKnobs(**how), application_name="test")
    with carrying(None):
        try:
            yield router
        finally:
            await router.close()


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.002)


def leader(router: Router) -> str | None:
    return router.cluster.primary.name if router.cluster.primary else None


class Line:
    """Stands for a connection that somebody uses."""

    is_cut = False

    def cut(self) -> None:
        self.is_cut = True


def count(counter: Any, *labels: str) -> float:
    return float((counter.labels(*labels) if labels else counter)._value.get())


async def test_after_silence_another_primary_cuts_the_old_ones_connections_and_counts_as_one_failover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(a=leads(), b=follows(), c=follows())
    async with router_over(nodes, monkeypatch) as router:
        failovers, line = count(metrics.FAILOVERS), Line()
        await router.place(Wish(), None)
        router.nodes["a"].writer.links["someone"] = line  # type: ignore[assignment]
        nodes.says["a"] = None
        await until(lambda: leader(router) is None)
        assert not line.is_cut, "silence says nothing: it may be ours"
        nodes.says["a"] = leads()
        await until(lambda: leader(router) == "a")
        assert (line.is_cut, count(metrics.FAILOVERS)) == (False, failovers)
        nodes.says["a"] = None
        await until(lambda: leader(router) is None)
        nodes.says |= {"b": leads(timeline=2), "c": follows(timeline=2)}
        await until(lambda: line.is_cut)
        assert (leader(router), count(metrics.FAILOVERS)) == ("b", failovers + 1)


async def test_whoever_sees_another_primary_sees_the_old_ones_connections_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very same turn of the loop: in the next one somebody could commit there."""
    async with router_over(Nodes(a=leads(), b=follows()), monkeypatch) as router:
        await router.place(Wish(), None)
        line = Line()
        router.nodes["a"].writer.links["someone"] = line  # type: ignore[assignment]
        router.view._note("b", replace(leads(timeline=2), seen_at=monotonic()))
        assert (leader(router), line.is_cut) == ("b", True)


async def test_a_connection_that_was_being_opened_while_its_primary_was_replaced_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch) as router:
        place = await router.place(Wish(), None)
        router.refuse_demoted(place.node)
        nodes.says["a"] = None
        await until(lambda: leader(router) is None)
        router.refuse_demoted(place.node)  # silence says nothing
        nodes.says |= {"a": leads(), "b": leads(timeline=2)}
        await until(lambda: leader(router) == "b")
        with pytest.raises(psycopg.OperationalError, match="a does not lead any more"):
            router.refuse_demoted(place.node)
        nodes.says |= {"a": leads(timeline=3), "b": follows(timeline=3)}
        await until(lambda: leader(router) == "a")
        router.refuse_demoted(place.node)


async def test_a_primary_that_calls_itself_a_standby_is_cut_before_another_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch) as router:
        await router.place(Wish(), None)
        line = Line()
        router.nodes["a"].writer.links["someone"] = line  # type: ignore[assignment]
        nodes.says["a"] = follows()
        await until(lambda: line.is_cut)
        assert leader(router) is None


async def test_a_loop_that_stood_still_takes_no_primary_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=follows(), b=follows(), c=leads())  # the others are looked at first
    async with router_over(nodes, monkeypatch, answer_timeout_s=0.02) as router:
        await router.place(Wish(), None)
        with capture_logs() as logs:
            for _ in range(5):
                asyncio.get_running_loop().call_soon(sleep, 0.1)  # as in a debugger
                await asyncio.sleep(0)
                await router.look_again()
        assert (leader(router), logs) == ("c", [])


@pytest.mark.parametrize("frozen_in", ["a look", "a heartbeat"])
async def test_a_primary_that_freezes_is_found_out_before_its_own_look_gives_it_up(
    frozen_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch, answer_timeout_s=0.05) as router:
        await router.place(Wish(), None)
        nodes.is_frozen = True
        if frozen_in == "a look":
            nodes.slow.add("a")
        await until(lambda: leader(router) is None)
        assert router.cluster.others[0].why == "it does not answer"
        nodes.slow.clear()
        nodes.is_open.set()
        await until(lambda: leader(router) == "a")


async def test_only_the_primary_is_given_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=leads(timeline=2), b=leads(timeline=1), c=leads(system_id=8, timeline=9))
    async with router_over(nodes, monkeypatch) as router:
        await router.place(Wish(), None)
        await until(lambda: len(nodes.beats) > 3)
        assert set(nodes.beats) == {"a"}


async def test_what_was_read_where_is_told_once_and_again_when_it_was_not_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viewing, "TELL_EVERY_S", 0.0)
    nodes = Nodes(a=leads(), b=follows())
    nodes.is_told = False
    async with router_over(nodes, monkeypatch) as router:
        await asyncio.gather(*(router.place(Wish("ro", "eventual"), None) for _ in range(3)))
        await until(lambda: len(nodes.told) > 1)
        assert nodes.told[-1] == {"b": 3}
        nodes.is_told = True
        nodes.told.clear()
        await until(lambda: nodes.told)
        await router.place(Wish("ro"), None)
        await until(lambda: len(nodes.told) > 1)
        assert nodes.told == [{"b": 3}, {"a": 1}]


async def test_what_was_seen_and_where_units_went_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=leads(lsn=400), b=follows(lsn=400), c=None)
    async with router_over(nodes, monkeypatch) as router:
        went = {asked: count(metrics.UNITS, "a", asked) for asked in ("rw", "causal")}
        refused, gave_up = count(metrics.REFUSED, "causal"), count(metrics.WAITS, "gave_up")
        await router.place(Wish(), None)
        nodes.says["a"] = leads(lsn=500)
        await until(lambda: count(metrics.LAG_BYTES, "b") == 100)
        places = [router.place(CAUSAL, CausalToken(SYSTEM, 1, 500)) for _ in range(router.knobs.overflow + 1)]
        ended = await asyncio.gather(*places, return_exceptions=True)
        assert sum(isinstance(one, ReplicaStale) for one in ended) == 1
        assert count(metrics.UNITS, "a", "rw") == went["rw"] + 1
        assert count(metrics.UNITS, "a", "causal") == went["causal"] + router.knobs.overflow
        assert count(metrics.REFUSED, "causal") == refused + 1
        assert count(metrics.WAITS, "gave_up") == gave_up + len(places)
        nodes.says["b"] = follows(lsn=500)
        await until(lambda: count(metrics.LAG_BYTES, "b") == 0)
        assert [count(metrics.PRIMARY, name) for name in "abc"] == [1, 0, 0]
        await until(lambda: [count(metrics.ADMITTED, name) for name in "abc"] == [0, 1, 0])
        assert count(metrics.LAG_SECONDS, "b") < 10


async def test_whoever_comes_during_the_first_look_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=leads(), b=follows())
    nodes.slow.add("b")
    async with router_over(nodes, monkeypatch) as router:
        units = [asyncio.create_task(router.place(Wish("ro", "eventual"), None)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(unit.done() for unit in units)
        nodes.is_open.set()
        assert {place.node for place in await asyncio.gather(*units)} == {"b"}


async def test_reads_without_a_token_do_not_all_fall_on_the_primary_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch, overflow=2) as router:
        places = await asyncio.gather(*(router.place(CAUSAL, None) for _ in range(5)), return_exceptions=True)
        assert [place.node for place in places if isinstance(place, Place)] == ["a", "a"]
        refused = [one for one in places if isinstance(one, ReplicaStale)]
        assert len(refused) == 3
        assert refused[0].message.startswith("no token") and "2 such reads are on the primary" in refused[0].message


@pytest.mark.parametrize(("wish", "taken"), [(Wish("ro", "eventual"), 1), (Wish("ro", "bounded", 5.0), 1), (CAUSAL, 2)])
async def test_with_every_replica_down_the_primary_takes_a_few_reads_of_each_kind(
    monkeypatch: pytest.MonkeyPatch, wish: Wish, taken: int
) -> None:
    nodes = Nodes(a=leads(), b=None, c=None)
    async with router_over(nodes, monkeypatch, overflow=2) as router:
        overflows = count(metrics.OVERFLOWS, wish.consistency)
        token = CausalToken(SYSTEM, 1, 100)
        places = await asyncio.gather(*(router.place(wish, token) for _ in range(4)), return_exceptions=True)
        given = [place for place in places if isinstance(place, Place)]
        assert [(place.node, place.is_replica) for place in given] == [("a", False)] * taken
        assert sum(isinstance(place, ReplicaStale) for place in places) == 4 - taken
        assert count(metrics.OVERFLOWS, wish.consistency) == overflows + taken
        for place in given:
            router.release(place)
        router.release(await router.place(wish, token))


async def test_a_read_that_waited_for_room_on_a_primary_goes_where_the_primary_is_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch, overflow=1, overflow_wait_s=5.0) as router:
        first = await router.place(CAUSAL, None)
        waiting = asyncio.create_task(router.place(CAUSAL, None))
        await asyncio.sleep(0.05)
        nodes.says |= {"a": follows(timeline=2), "b": leads(timeline=2)}
        await until(lambda: leader(router) == "b")
        router.release(first)
        place = await waiting
        assert (place.node, place.is_replica) == ("b", False)


async def test_a_token_of_the_future_is_ignored_once_every_node_was_asked_and_refused_while_one_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing, "PRIMARY_WAIT_S", 0.3)
    token = CausalToken(SYSTEM, 9, 100)
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch) as router:
        before = count(metrics.TOKENS_LOST, "future")
        place = await router.place(CAUSAL, token)
        assert (place.node, count(metrics.TOKENS_LOST, "future")) == ("a", before + 1)
        nodes.says["b"] = None
        await until(lambda: not router.cluster.replicas)
        with pytest.raises(ReplicaStale, match="no node has been seen on it yet"):
            await router.place(CAUSAL, token)


async def test_an_impossible_token_is_forgotten_by_the_work_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch) as router:
        token = CausalToken(SYSTEM, 1, 1 << 63)
        with carrying(token) as trail:
            place = await router.place(CAUSAL, router.believed(None))
            assert (place.node, trail.token) == ("a", None)


async def test_several_routers_of_a_process_look_once_and_each_cuts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch) as router:
        beside = Router(router.layout, router.knobs, application_name="chores", view=router.view)
        await asyncio.gather(router.place(Wish(), None), beside.place(Wish(), None))
        lines = [Line(), Line()]
        for one, line in zip((router, beside), lines, strict=True):
            one.nodes["a"].writer.links["someone"] = line  # type: ignore[assignment]
        nodes.says |= {"a": None, "b": leads(timeline=2)}
        await until(lambda: all(line.is_cut for line in lines))
        await beside.close()
        nodes.says |= {"b": leads(timeline=2, lsn=500)}
        await until(lambda: router.cluster.flushed[-1][1] == 500)


async def test_without_any_primary_a_write_names_what_each_node_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "PRIMARY_WAIT_S", 0.1)
    async with router_over(Nodes(a=None, b=follows()), monkeypatch) as router:
        with pytest.raises(PrimaryLost, match=r"no node takes writes; a write \(.*a: it does not answer"):
            await router.place(Wish(), None)


async def test_one_look_that_fails_unexpectedly_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(a=leads(), b=follows())
    async with router_over(nodes, monkeypatch) as router:
        await router.place(Wish(), None)
        looked = FakeEye.look
        monkeypatch.setattr(FakeEye, "look", failing)
        await asyncio.sleep(0.05)
        monkeypatch.setattr(FakeEye, "look", looked)
        nodes.says |= {"a": None, "b": leads(timeline=2)}
        await until(lambda: leader(router) == "b")


async def failing(_self: FakeEye) -> Facts | None:
    raise AttributeError("a defect")


async def test_what_was_seen_of_a_node_holds_for_connections_that_a_restart_would_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pooler keeps its clients' connections through a restart of the server: there each read has to ask."""
    token = CausalToken(SYSTEM, 1, 100)
    for pooler, holds in (("none", True), ("pgbouncer", False)):
        async with router_over(Nodes(a=leads(), b=follows()), monkeypatch, pooler=pooler) as router:
            place = await router.place(CAUSAL, token)
            assert (place.node, place.facts is not None) == ("b", True)
            assert holds_for(connected(opened_at=0.0), place, CAUSAL, token) is holds
            assert not holds_for(connected(opened_at=monotonic()), place, CAUSAL, token)


def connected(*, opened_at: float) -> Honest:
    """Stands for a connection of a certain age."""
    return cast(Honest, SimpleNamespace(opened_at=opened_at))
