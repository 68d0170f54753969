"""Model providers for measurements: the fake chat server as processes of their own, and a plane before them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from shared.llm.config_file import read_text
from shared.llm.plane import LLMPlane, open_plane
from shared.memory.cache import open_redis
from shared.memory.knobs import MemoryKnobs
from shared.resilience.fail_open import open_gate_store
from shared.resilience.knobs import StoreKnobs
from tests.bench.site import BenchFailed
from workers.ops.surroundings import ROOT

UP_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """A provider that runs."""

    base_url: str
    pid: int

    def signal(self, number: signal.Signals) -> None:
        """Kill, freeze or thaw it."""
        os.kill(self.pid, number)


@contextmanager
def provider(*, delay_s: float = 0.0) -> Iterator[Served]:
    """A provider that answers every call after `delay_s`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.fakes.chat_server", "--port", str(port), "--delay-s", str(delay_s)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        end = time.monotonic() + UP_WITHIN_S
        while not _listens(port):
            if time.monotonic() > end or process.poll() is not None:
                raise BenchFailed("the fake provider did not come up")
            time.sleep(0.05)
        yield Served(f"http://127.0.0.1:{port}/v1", process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@asynccontextmanager
async def plane(text: str) -> AsyncIterator[LLMPlane]:
    """A plane of this configuration on the site's Redis."""
    url = os.environ["FLEET_MEMORY_REDIS_URL"]
    redis: Redis = open_redis(MemoryKnobs(redis_url=url))
    store = open_gate_store(StoreKnobs(redis_url=url, prefix=f"bench-{time.time_ns()}"))
    opened = open_plane(read_text(text, source="bench", environment={}), store=store, redis=redis)
    try:
        yield opened
    finally:
        await opened.aclose()
        await store.aclose()
        await redis.aclose()
        await asyncio.sleep(0)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
