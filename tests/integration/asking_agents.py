"""Agents that ask language models: for tests of what a fleet does when those die."""

import asyncio
from pathlib import Path
from typing import Any

from shared.errors import ChildFailed
from workers.agents.agent import agent
from workers.agents.run import Run


@agent("ask.on")
async def on(run: Run, number: int, until: str) -> int:
    """Ask one question after the other until a file is there."""
    asked = 0
    while not is_there(until):
        await run.chat(f"question {asked} of run {number}", max_tokens=8)
        asked += 1
    return asked


async def works(until: str) -> None:
    """Until a file is there."""
    while not is_there(until):
        await asyncio.sleep(0.05)


def is_there(path: str) -> bool:
    """Whether there is such a file."""
    return Path(path).exists()


@agent("ask.twice")
async def twice(run: Run, number: int, until: str) -> list[str]:
    """A question, some work until a file is there, another question."""
    first = await run.chat(f"first of {number}")
    await run.step("work", works, until)
    second = await run.chat(f"second of {number}")
    return [first.text, second.text]


@agent("ask.once")
async def once(run: Run, text: str, model: str | None = None) -> str:
    """A question."""
    return (await run.chat(text, model=model, max_tokens=8)).text


@agent("ask.patient")
async def patient(run: Run, text: str) -> str:
    """A question of an agent that its policy lets wait for models that are down."""
    return (await run.chat(text)).text


@agent("ask.estate")
async def estate(run: Run, heirs: int, questions: int) -> list[Any]:
    """Children that spend of the run's own budget, and then the run itself."""
    started = [await run.spawn("ask.heir", {"number": number, "questions": questions}) for number in range(heirs)]
    ended = await run.gather(started, return_exceptions=True)
    failed = [one.context["error"] for one in ended if isinstance(one, ChildFailed)]
    await run.step("tell", lambda errors: errors, failed)
    if failed:
        await run.chat("what is left?", max_tokens=10)
    return ended


@agent("ask.heir")
async def heir(run: Run, number: int, questions: int) -> int:
    """Ask and ask; half of it is a grandchild's."""
    child = (
        await run.spawn("ask.heir", {"number": 100 + number, "questions": questions // 2}) if questions > 1 else None
    )
    for turn in range(questions - questions // 2):
        await run.chat(f"heir {number} asks {turn}", max_tokens=10)
    if child is not None:
        await run.gather([child])
    return number
