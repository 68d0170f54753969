"""A producer that forks after its first task, as gunicorn and uWSGI do: each process has ways of its own."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from kombu import Connection

from shared.contracts import QUEUE
from tests.integration.terminal import WITHOUT_FLEET
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

PROGRAM = """
import asyncio, os
from shared.client import FleetClient

client = FleetClient()

async def submit():
    async with asyncio.timeout(40):
        print((await client.asubmit("a", {})).accepted_by, flush=True)

asyncio.run(submit())
child = os.fork()
asyncio.run(submit())
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def env(servers: BackgroundSupervisor) -> Iterator[dict[str, str]]:
    """Without a ledger: what the broker does not get is not accepted."""
    yield {**servers.env, "FLEET_DB_URL": "postgresql+psycopg://fleet@127.0.0.1:1/fleet"}
    with Connection(servers.broker_url) as broker:
        broker.default_channel.queue_delete(QUEUE)


def test_a_forked_asyncio_producer_publishes_over_a_connection_of_its_own(env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**WITHOUT_FLEET, **env}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line == "broker"] == ["broker"] * 3
