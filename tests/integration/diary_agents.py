"""Agents that write down every start where it cannot be taken back: who was started twice is seen."""

import asyncio
import time

from tests.integration.agents import note
from workers.agents.agent import agent
from workers.agents.run import Run


@agent("diary.start")
async def start(run: Run, diary: str, number: int, seconds: float = 0.0) -> float:
    """Say that this run began, then wait; returns when it began."""
    began = time.time()
    note(diary, number)
    if seconds:
        await asyncio.sleep(seconds)
    return began


@agent("diary.steps")
async def steps(run: Run, diary: str, number: int, count: int, step_s: float) -> int:
    """Steps of which each writes `number.step` when it has happened."""
    for step in range(count):
        await run.step("step", step_of, diary, number, step, step_s)
    return number


async def step_of(diary: str, number: int, step: int, step_s: float) -> str:
    """Wait, then say so."""
    await asyncio.sleep(step_s)
    text = f"{number}.{step}"
    note(diary, text)  # type: ignore[arg-type]
    return text


@agent("diary.ticks")
async def ticks(run: Run, diary: str, ticks: int) -> int:
    """Write ten lines a second, without a step."""
    for number in range(ticks):
        note(diary, number)
        await asyncio.sleep(0.1)
    return ticks
