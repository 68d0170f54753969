"""PostgreSQL's failover on real servers: the old primary alive, dead or frozen; fenced, replaced, taken back."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.integration.live import eventually
from tests.integration.nodes import Writers, ask, dsn, group_of, nodes_in, watching
from workers.ops.background import BackgroundSupervisor
from workers.ops.census import identify, is_alive
from workers.ops.replication.failover import Outcome, Wish
from workers.ops.replication.refusals import AlreadyPrimary, ReplicaBehind, ReplicaUnseen

FAILOVERS = 20 if os.environ.get("CHAOS") == "long" else 3
HOW = ("killed", "frozen", "alive")
HOW_IT_ENDS = {"killed": "was down", "frozen": "killed", "alive": "stopped in order"}
PARTS = ("detect", "fence", "drain", "promote", "writable", "follow", "rejoin")


@pytest.fixture(scope="module")
def servers(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """A primary and two replicas, one of which has every acknowledged commit on disk."""
    with nodes_in(run_folder(), synchronous=True) as started:
        leader = group_of(started).leader.name
        ask(started, leader, "CREATE TABLE kept (number bigint PRIMARY KEY)")
        yield started


def leader_of(servers: BackgroundSupervisor) -> str:
    return group_of(servers).leader.name


def strike(servers: BackgroundSupervisor, how: str) -> None:
    """What befalls the primary before the failover is asked for."""
    if how == "killed":
        servers.suspend(leader_of(servers))
        servers.kill(leader_of(servers))
    elif how == "frozen":
        servers.freeze(leader_of(servers))


def settled(servers: BackgroundSupervisor) -> bool:
    rows = ask(servers, leader_of(servers), "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
    return rows == [(len(group_of(servers).nodes) - 1,)]


def test_a_fenced_primary_started_by_hand_refuses_writes_and_takes_itself_back_when_started_by_us(
    servers: BackgroundSupervisor,
) -> None:
    old = group_of(servers).leader
    outcome = servers.failover_db(Wish(rejoin=False))
    assert outcome.followers[old.name] == "fenced, down"
    spec = next(spec for spec in servers.topology.specs if spec.name == old.name)
    with old.folder.joinpath("by-hand.log").open("w") as log:
        command = [*servers.around.privileges.prefix, *spec.argv]
        resurrected = subprocess.Popen(command, stdout=log, stderr=log, cwd=old.folder, env=dict(spec.env))
    try:
        eventually(lambda: answers(old.port))
        assert ask(servers, old.name, "SELECT pg_is_in_recovery()") == [(True,)]
        for statement in ("INSERT INTO kept VALUES (0)", "SET default_transaction_read_only = off; DELETE FROM kept"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                ask(servers, old.name, statement)
    finally:
        resurrected.send_signal(2)
        resurrected.wait(timeout=20)
    servers.start(old.name)
    eventually(lambda: settled(servers))
    assert group_of(servers).returns[old.name] in ("pg_rewind", "pg_basebackup")


def test_what_cannot_be_done_is_refused_and_changes_nothing(servers: BackgroundSupervisor) -> None:
    leader = group_of(servers).leader
    with pytest.raises(AlreadyPrimary, match=f"{leader.name} is the primary already"):
        servers.failover_db(Wish(to=leader.name))
    cut_off(servers)
    with psycopg.connect(dsn(leader.port), autocommit=True) as lonely:
        lonely.execute("SET synchronous_commit = local")
        lonely.execute("SELECT pg_logical_emit_message(true, 'far', repeat('x', 1 << 20)) FROM generate_series(1, 17)")
    with pytest.raises(ReplicaBehind, match="wait until it has caught up, or accept the loss with --force"):
        servers.failover_db()
    strike(servers, "killed")
    gone = group_of(servers).followers[0].name
    servers.stop(gone)
    with pytest.raises(ReplicaUnseen, match=f"{gone} cannot be asked .* may hold acknowledged writes"):
        servers.failover_db()
    servers.start(gone)
    servers.start(leader.name)
    for node in group_of(servers).followers:
        servers.restart(node.name)
    eventually(lambda: settled(servers))
    assert leader_of(servers) == leader.name


def test_the_old_primary_leads_again_when_only_a_silent_standby_has_an_acknowledged_write(
    servers: BackgroundSupervisor,
) -> None:
    leader, (cut, silent) = leader_of(servers), group_of(servers).followers
    cut_off(servers, cut.name)
    ask(servers, leader, "INSERT INTO kept VALUES (-5)")
    servers.freeze(silent.name)
    with pytest.raises(ReplicaUnseen, match=f"{silent.name} cannot be asked .* {leader} leads again"):
        servers.failover_db()
    servers.thaw(silent.name)
    servers.restart(cut.name)
    eventually(lambda: settled(servers))
    assert leader_of(servers) == leader
    ask(servers, leader, "INSERT INTO kept VALUES (-6)")


def test_the_replica_asked_for_first_fetches_what_another_one_has(servers: BackgroundSupervisor) -> None:
    behind, ahead = group_of(servers).followers
    cut_off(servers, behind.name)
    ask(servers, leader_of(servers), "INSERT INTO kept VALUES (-2)")
    old = group_of(servers).leader
    strike(servers, "killed")
    old.cluster.joinpath("global", "pg_control").unlink()
    outcome = servers.failover_db(Wish(to=behind.name))
    assert (outcome.new, outcome.lossless) == (behind.name, True)
    assert outcome.followers[old.name] == "streams, by pg_basebackup", "pg_rewind cannot do it"
    assert ask(servers, behind.name, "SELECT 1 FROM kept WHERE number = -2") == [(1,)]
    assert outcome.followers[ahead.name] == "streams"


def test_a_frozen_replica_does_not_hold_up_a_failover_and_follows_once_it_thaws(servers: BackgroundSupervisor) -> None:
    frozen = group_of(servers).followers[0].name
    ask(servers, leader_of(servers), "INSERT INTO kept VALUES (-4)")
    servers.freeze(frozen)
    outcome = servers.failover_db()
    assert (outcome.fenced, outcome.lossless) == ("stopped in order", True)
    assert outcome.followers[frozen] == "does not answer; it follows when it does"
    servers.thaw(frozen)
    eventually(lambda: settled(servers))
    assert ask(servers, frozen, "SELECT 1 FROM kept WHERE number = -4") == [(1,)]


def test_a_failover_that_was_interrupted_is_ended_by_the_next_start(servers: BackgroundSupervisor) -> None:
    group, old = group_of(servers), group_of(servers).leader
    new = group.followers[0]
    ask(servers, old.name, "INSERT INTO kept VALUES (-3)")
    old.fence("a drill")
    servers.stop_all()
    group.crown(new.name)
    for name in (new.name, *(node.name for node in group.nodes if node != new)):
        servers.start(name)
    eventually(lambda: settled(servers))
    assert ask(servers, new.name, "SELECT 1 FROM kept WHERE number = -3") == [(1,)]
    assert group.returns[old.name] in ("pg_rewind", "pg_basebackup")


def test_no_write_that_a_standby_has_acknowledged_is_lost_whether_the_primary_is_well_dead_or_frozen(
    servers: BackgroundSupervisor,
) -> None:
    outcomes: list[Outcome] = []
    gaps_s: list[float] = []
    with Writers(tuple(node.port for node in group_of(servers).nodes)) as writers:

        def thirty_more() -> None:
            goal = writers.total() + 30
            eventually(lambda: writers.total() > goal)

        for number in range(FAILOVERS):
            thirty_more()
            writers.longest_gap_s()
            outcomes.append(taken_over(servers, HOW[number % len(HOW)]))
            thirty_more()
            gaps_s.append(writers.longest_gap_s())
            eventually(lambda: settled(servers))
    lost = lost_of(writers, servers)
    print(f"\n{len(outcomes)} failovers, primary {', '.join(HOW)} in turn")
    print(f"acknowledged by a standby too: {len(writers.acknowledged[True])} writes, {len(lost[True])} lost")
    print(f"acknowledged by the primary alone: {len(writers.acknowledged[False])} writes, {len(lost[False])} lost")
    print(f"longest time without an acknowledged write: {max(gaps_s):.2f} s")
    for part in PARTS:
        times = sorted(outcome.seconds[part] for outcome in outcomes)
        print(f"  {part:<9} median {times[len(times) // 2]:.3f} s, worst {times[-1]:.3f} s")
    assert lost[True] == set()


def taken_over(servers: BackgroundSupervisor, how: str) -> Outcome:
    """One failover of a primary in that state, and what must be true after it."""
    old = leader_of(servers)
    old_process, timeline = identify(servers.pid(old)), timeline_of(servers)
    strike(servers, how)
    told: list[str] = []
    outcome = servers.failover_db(say=lambda part, sentence: told.append(part))
    assert (outcome.old, outcome.fenced, outcome.lossless) == (old, HOW_IT_ENDS[how], True)
    assert old_process
    assert not is_alive(old_process)
    assert outcome.timeline == timeline_of(servers) == timeline + 1
    assert {node.name for node in group_of(servers).followers} == set(outcome.followers)
    assert outcome.followers[old] in ("streams, by pg_rewind", "streams, by pg_basebackup")
    assert told == ["detect", "fence", "promote", "follow", "rejoin"]
    assert set(outcome.seconds) == set(PARTS)
    assert servers.db_url.endswith(f":{group_of(servers).node(outcome.new).port}/fleet")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ask(servers, old, "INSERT INTO kept VALUES (0)")
    return outcome


def test_an_old_primary_never_serves_what_it_alone_has_acknowledged_while_it_was_cut_off(
    servers: BackgroundSupervisor,
) -> None:
    group, old = group_of(servers), group_of(servers).leader
    with Writers(tuple(node.port for node in group.nodes), offset=10) as writers:
        eventually(lambda: writers.total() > 20)
        cut_off(servers)
        with psycopg.connect(dsn(old.port), autocommit=True) as lonely:
            lonely.execute("SET synchronous_commit = local")
            lonely.execute("INSERT INTO kept VALUES (-1)")
        before = len(writers.acknowledged[False])
        eventually(lambda: len(writers.acknowledged[False]) > before + 200)
        strike(servers, "killed")

        def lost_rows() -> list[str]:
            return [one.name for one in group.nodes if ask(servers, one.name, "SELECT 1 FROM kept WHERE number = -1")]

        with watching(lost_rows) as seen:
            outcome = servers.failover_db()
            eventually(lambda: settled(servers))
            assert ask(servers, old.name, "SELECT count(*) > 0 FROM kept") == [(True,)]
    lost = lost_of(writers, servers)
    alone = len(writers.acknowledged[False])
    print(f"\ncut off, then killed: {len(lost[False])} of {alone} writes lost that the primary alone had acknowledged")
    assert (outcome.followers[old.name], seen) == ("streams, by pg_rewind", [])
    assert (lost[True], len(lost[False]) >= 200) == (set(), True)


def lost_of(writers: Writers, servers: BackgroundSupervisor) -> dict[bool, set[int]]:
    """What was acknowledged and is not there."""
    there = {number for (number,) in ask(servers, leader_of(servers), "SELECT number FROM kept")}
    return {kind: set(numbers) - there for kind, numbers in writers.acknowledged.items()}


def timeline_of(servers: BackgroundSupervisor) -> int:
    [[name]] = ask(servers, leader_of(servers), "SELECT pg_walfile_name(pg_current_wal_lsn())")
    return int(name[:8], 16)


def cut_off(servers: BackgroundSupervisor, *names: str) -> None:
    """Let replicas receive nothing any more: all of them, or these."""
    group = group_of(servers)
    for node in group.followers:
        if not names or node.name in names:
            node.configure({"primary_conninfo": ""})
            ask(servers, node.name, "SELECT pg_reload_conf()")
            eventually(lambda node=node: not ask(servers, node.name, "SELECT 1 FROM pg_stat_wal_receiver"))  # type: ignore[misc]


def answers(port: int) -> bool:
    try:
        with psycopg.connect(dsn(port), connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
