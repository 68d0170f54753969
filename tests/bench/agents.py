"""The agents that are measured, loaded by the worker under test (FLEET_AGENTS=tests.bench.agents)."""

import asyncio
import time

from workers.agents.agent import agent
from workers.agents.run import Run


async def nothing() -> None:
    """The cheapest step there is."""


@agent("bench-noop")
async def noop(run: Run) -> None:
    """One journaled step that does nothing."""
    await run.step("nothing", nothing)


@agent("bench-sleep")
async def sleep(run: Run, seconds: float) -> None:
    """One journaled step that waits, as for a model."""
    await run.step("sleep", asyncio.sleep, seconds)


@agent("bench-call")
async def call(run: Run) -> None:
    """One journaled model call."""
    await run.chat("How long is a piece of string?")


@agent("bench-stamp")
async def stamp(run: Run) -> int:
    """The time at which the body began, in ns."""
    return time.time_ns()


@agent("bench-steps")
async def steps(run: Run, number: int) -> list[float]:
    """Many steps that do nothing, one after the other; how long each took, in ms."""
    took = []
    for _ in range(number):
        began = time.perf_counter_ns()
        await run.step("nothing", nothing)
        took.append((time.perf_counter_ns() - began) / 1e6)
    return took
