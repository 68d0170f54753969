"""What befalls PostgreSQL's nodes in tests: replay paused, a receiver cut, a backend stopped, deaths and a return."""

import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress

import psycopg

from tests.integration.live import eventually
from tests.integration.nodes import AWAY, LISTED, ask, dsn, group_of
from workers.ops.background import BackgroundSupervisor
from workers.ops.replication.failover import Wish
from workers.ops.spec import ServerFailed

LINGER_S = 0.5
FAULTS = ("pause", "cut", "stop_backend", "kill_replica", "fail_over", "resurrect")


class Faults:
    """Each fault is over when its method returns, and counted in `done` if it really happened.

    Args:
        application: Whose backends are stopped.
    """

    def __init__(self, servers: BackgroundSupervisor, *, application: str) -> None:
        self.servers = servers
        self.application = application
        self.done: Counter[str] = Counter()

    @property
    def leader(self) -> str:
        """Who takes writes."""
        return group_of(self.servers).leader.name

    @property
    def replicas(self) -> list[str]:
        """The others."""
        return [node.name for node in group_of(self.servers).followers]

    def strike_all(self) -> None:
        """Every fault once, in turn."""
        for name in FAULTS:
            getattr(self, name)()

    def pause(self) -> None:
        """A replica receives and replays nothing."""
        replica = self.replicas[0]
        ask(self.servers, replica, "SELECT pg_wal_replay_pause()")
        eventually(lambda: ask(self.servers, replica, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)])
        time.sleep(LINGER_S)
        self.done["pause"] += 1
        ask(self.servers, replica, "SELECT pg_wal_replay_resume()")

    def cut(self) -> None:
        """A receiver that is stopped: its server goes on calling it streaming."""
        query = "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'"
        rows = eventually(lambda: ask(self.servers, self.replicas[1], query))
        self.done["cut"] += self._stop([pid for (pid,) in rows])

    def stop_backend(self) -> None:
        """A backend of the readers stands still: its client waits for it."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND backend_type = 'client backend'"
        rows = eventually(lambda: ask(self.servers, self.replicas[0], query, self.application))
        self.done["stop_backend"] += self._stop([pid for (pid,) in rows[:1]])

    def kill_replica(self) -> None:
        """Dead, and started again."""
        replica = self.replicas[1]
        self.servers.suspend(replica)
        self.servers.kill(replica)
        self._start(replica)
        self.done["kill_replica"] += 1

    def fail_over(self) -> None:
        """The primary is killed; a replica takes over; the dead one returns as a replica."""
        before = self.timeline()
        self.servers.suspend(self.leader)
        self.servers.kill(self.leader)
        self.servers.failover_db(Wish(force=True))
        self._settle(since=before)
        self.done["fail_over"] += 1

    def resurrect(self) -> None:
        """As `fail_over`, but somebody starts the dead primary by hand before it has been taken back."""
        before, old = self.timeline(), group_of(self.servers).leader
        self.servers.suspend(old.name)
        self.servers.kill(old.name)
        self.servers.failover_db(Wish(force=True, rejoin=False))
        spec = next(spec for spec in self.servers.topology.specs if spec.name == old.name)
        with old.folder.joinpath("by-hand.log").open("w") as log:
            command = [*self.servers.around.privileges.prefix, *spec.argv]
            ghost = subprocess.Popen(command, stdout=log, stderr=log, cwd=old.folder, env=dict(spec.env))
        try:
            eventually(lambda: self._answers(old.port))
            time.sleep(LINGER_S)
            self.done["resurrect"] += ghost.poll() is None
        finally:
            ghost.send_signal(signal.SIGINT)
            ghost.wait(timeout=30)
        self._start(old.name)
        self._settle(since=before)

    def timeline(self) -> int:
        """Of the primary."""
        [[name]] = ask(self.servers, self.leader, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        return int(name[:8], 16)

    def _start(self, name: str) -> None:
        """The supervisor gives up on what dies too often; a test does not."""
        try:
            self.servers.start(name)
        except ServerFailed:
            self.servers.start(name)

    def _settle(self, *, since: int) -> None:
        assert self.timeline() > since
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        eventually(lambda: self._asked(streaming) == [(2,)], within_s=60)

    def _asked(self, query: str) -> list[tuple[object, ...]]:
        with suppress(*AWAY):
            return ask(self.servers, self.leader, query)
        return []

    def _answers(self, port: int) -> bool:
        try:
            with psycopg.connect(dsn(port), **LISTED):
                return True
        except psycopg.OperationalError:
            return False

    def _stop(self, pids: list[int]) -> bool:
        """Processes stand still for a moment; whether there were any, and all of them did."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(LINGER_S)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return bool(pids)
