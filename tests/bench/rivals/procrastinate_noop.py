"""Procrastinate: one asynchronous task, deferred by one producer, run by one worker; it keeps no journal of steps."""

import asyncio
import sys
import time

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]

AT_ONCE = 256
"""Submits that the producer has open at once, as ours has."""
IN_WORK = 100
DONE = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status = 'succeeded' AND lock LIKE %(mine)s"


def app_on(url: str) -> App:
    """The application, as worker and producer share it."""
    app = App(connector=PsycopgConnector(conninfo=url, min_size=8, max_size=20))

    @app.task(name="noop", queue="bench")  # type: ignore[untyped-decorator]
    async def noop() -> None:
        pass

    return app


async def work(url: str) -> None:
    """Run jobs until killed."""
    app = app_on(url)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        print("ready", flush=True)
        await app.run_worker_async(queues=["bench"], concurrency=IN_WORK, listen_notify=True)


async def produce(url: str, count: int) -> float:
    """Seconds from the first job to the end of the last."""
    mine = f"{time.time_ns()}-"
    app = app_on(url)
    numbers = iter(range(count))
    async with app.open_async():
        began = time.monotonic()

        async def some() -> None:
            for number in numbers:
                await app.configure_task("noop", queue="bench", lock=f"{mine}{number}").defer_async()

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        while (await app.connector.execute_query_one_async(DONE, mine=f"{mine}%"))["n"] != count:
            await asyncio.sleep(0.05)
        return time.monotonic() - began


if __name__ == "__main__":
    if sys.argv[2] == "worker":
        asyncio.run(work(sys.argv[1]))
    else:
        print(asyncio.run(produce(sys.argv[1], int(sys.argv[3]))), flush=True)
