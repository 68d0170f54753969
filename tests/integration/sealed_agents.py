"""Agents whose every value carries the word that they were given: to be found nowhere but with its owner."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from shared.errors import FleetError, LLMRefused
from shared.llm.messages import Message
from workers.agents.agent import agent
from workers.agents.run import Run

log = structlog.get_logger()

LARGE = 300_000
"""Characters: above the size at which a result goes to the table of large ones."""


@agent("test.secret")
async def secret(run: Run, word: str, ask: bool = True) -> dict[str, Any]:
    """Hand a word through steps, large results, failures, signals, children and a conversation, and log it."""
    log.info("secret.told", said=word)
    await run.remember(Message("user", word))
    heard = [message.content for message in await run.recall()]
    said = await run.step("say", lambda text: {"said": text}, word)
    large = await run.step("large", enlarged, word)
    child = await run.spawn("test.echo", {"text": word})
    try:
        await run.step("refused", refuse, word)
    except FleetError as error:
        told = error.message
    answer = await run.wait_for("answer") if ask else None
    (echo,) = await run.gather([child])
    return {**said, "large": large[: len(word)], "told": told, "answer": answer, "echo": echo["said"], "heard": heard}


@agent("test.secret.slow")
async def slow(run: Run, word: str, until: str) -> str:
    """Hold a slot until a file is there."""
    while not await asyncio.to_thread(Path(until).exists):
        await asyncio.sleep(0.05)
    return word


def hide(event: dict[str, Any]) -> Mapping[str, Any]:
    """A hook for logs: what was said is nobody's business."""
    return {name: value for name, value in event.items() if name != "said"}


def enlarged(word: str) -> str:
    """A result for the table of large ones, in which the word stands whole."""
    return word + "." * LARGE


def refuse(word: str) -> None:
    """An outcome that carries the word."""
    raise LLMRefused(f"not with {word}")


@agent("test.secret.stumbles")
async def stumbles(run: Run, word: str, stone: str) -> list[Any]:
    """Fail while a stone is in the way; what was done before is kept."""
    said = await run.step("say", noted, word, stone)
    await run.step("walk", walk, stone)
    return [said, run.attempt]


def noted(word: str, stone: str) -> str:
    """Say it, and count how often."""
    with Path(f"{stone}.diary").open("a") as page:
        page.write("said\n")
    return word


def walk(stone: str) -> None:
    """Stumble."""
    if Path(stone).exists():
        raise LLMRefused("there is a stone")
