"""A fleet of gate workers as real processes, the files that are their endpoint, and a Redis that a test may break."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from workers.ops.ports import free_port
from workers.ops.recipes.cache import binary
from workers.ops.surroundings import ROOT


class OwnRedis:
    """A server of the test's own: stopped and started at will; it forgets everything then, but for `more` options."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.more: tuple[str, ...] = ()
        self.port = free_port(taken=set())
        self.url = f"redis://127.0.0.1:{self.port}/1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        argv = [str(binary("system")), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        argv += self.more
        self._process = subprocess.Popen([*argv, "--dir", str(self._folder)], stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:
            within(60.0, lambda: _answers(client), "Redis answers")

    def signal(self, signum: int) -> None:
        """Freeze, thaw, …"""
        if self._process is not None:
            self._process.send_signal(signum)

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class GateFleet:
    """Workers and what they did."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self._config = {**config, "folder": str(folder)}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.set("up")

    def start(self, count: int, *, skew: str | None = None) -> None:
        """Start workers, with a clock that is wrong by `skew` ("+1h") where given."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        if skew is not None:
            env |= {"LD_PRELOAD": str(faketime()), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        argv = [sys.executable, "-m", "tests.integration.gate_worker", json.dumps(self._config)]
        log = (self.folder / "log").open("ab")
        self.processes += [
            subprocess.Popen(argv, env=env, cwd=ROOT, stdout=log, stderr=log) for _ in range(count)
        ]  # fmt: skip
        log.close()

    def set(self, state: str) -> None:
        """What the endpoint does from now on."""
        scratch = self.folder / "state.new"
        scratch.write_text(state, "utf-8")
        scratch.replace(self.folder / "state")

    def calls(self, **wanted: Any) -> list[dict[str, Any]]:
        """What the endpoint saw, oldest first."""
        lines = [line for path in self.folder.glob("*.calls") for line in path.read_text("utf-8").splitlines()]
        calls = [json.loads(line) for line in lines if line.endswith("}")]
        chosen = [one for one in calls if all(one[name] == value for name, value in wanted.items())]
        return sorted(chosen, key=lambda one: float(one["at"]))

    def rounds(self, **wanted: Any) -> Counter[int]:
        """Probes of each round."""
        return Counter(one["generation"] for one in self.calls(is_probe=True, **wanted))

    def whole_rounds(self, **wanted: Any) -> dict[int, int]:
        """Probes of each round that met the endpoint away; but for the last one, during which it may have returned."""
        probes = self.rounds(**wanted)
        return {number: probes[number] for number in sorted(self.rounds(state="down", **wanted))[:-1]}

    def heal(self) -> None:
        """The endpoint is back; every worker has called it since, and so has noted all that it did before."""
        back_at = time.monotonic()
        self.set("up")

        def callers() -> int:
            return len({one["pid"] for one in self.calls(is_probe=False, state="up") if one["at"] > back_at})

        within(60.0, lambda: callers() == len(self.processes), "healed, and all workers call")

    def begin(self) -> None:
        """Let all call as soon as all are there: a dozen that start at once take minutes where others are busy too."""
        within(240.0, lambda: len(list(self.folder.glob("*.calls"))) == len(self.processes), "all workers are there")
        (self.folder / "go").touch()

    def callers(self, **wanted: Any) -> int:
        """How many processes have called."""
        return len({one["pid"] for one in self.calls(**wanted)})

    def kill(self, pid: int) -> None:
        """kill -9."""
        next(one for one in self.processes if one.pid == pid).kill()

    def stop(self) -> str:
        """End all, and return what they logged."""
        (self.folder / "stop").touch()
        end = time.monotonic() + 10.0
        for process in self.processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        return (self.folder / "log").read_text("utf-8")


@contextmanager
def running(folder: Path, config: dict[str, Any]) -> Iterator[GateFleet]:
    """A fleet that is stopped at the end."""
    fleet = GateFleet(folder, config)
    try:
        yield fleet
    finally:
        fleet.stop()


def within(seconds: float, condition: Callable[[], bool], what: str) -> float:
    """Wait for a condition; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def faketime() -> Path:
    """The library that changes a process's clock; it is preloaded, never imported."""
    spec = find_spec("libfaketime")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.rglob("libfaketime.so.1"))


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False
