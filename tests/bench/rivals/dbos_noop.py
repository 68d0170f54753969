"""DBOS Transact: one workflow with one step, enqueued by its client, run by one process with the default threads."""

import asyncio
import sys
import time
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient  # type: ignore[import-not-found]

QUEUE = "bench"
POLL_S = 0.02
"""Between two looks of the worker for work; the default of 1 s would idle most of the time."""
AT_ONCE = 256
"""Submits that the producer has open at once, as ours has."""
IN_WORK = 100
DONE = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS' AND workflow_uuid LIKE :mine"


def work(url: str) -> None:
    """Run workflows until killed."""
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "application_version": "1"})

    @DBOS.step()  # type: ignore[untyped-decorator]
    async def nothing() -> None:
        pass

    @DBOS.workflow(name="noop")  # type: ignore[untyped-decorator]
    async def noop() -> None:
        await nothing()

    DBOS.listen_queues([QUEUE])
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=IN_WORK, polling_interval_sec=POLL_S)
    print("ready", flush=True)
    time.sleep(1e6)


async def produce(url: str, count: int) -> float:
    """Seconds from the first enqueue to the last end."""
    client = DBOSClient(system_database_url=url)
    mine = f"{time.time_ns()}-"
    numbers = iter(range(count))
    began = time.monotonic()

    async def some() -> None:
        for number in numbers:
            how: Any = {"queue_name": QUEUE, "workflow_name": "noop", "workflow_id": f"{mine}{number}"}
            await client.enqueue_async({**how, "application_name": "bench", "app_version": "1"})

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    with sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        while connection.execute(sqlalchemy.text(DONE), {"mine": f"{mine}%"}).scalar() != count:
            await asyncio.sleep(0.05)
    return time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[2] == "worker":
        work(sys.argv[1])
    else:
        print(asyncio.run(produce(sys.argv[1], int(sys.argv[3]))), flush=True)
