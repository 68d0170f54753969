"""The agents of `fleet demo`: loaded by FLEET_AGENTS=workers.agents.demo, in no other fleet."""

import asyncio
import time
from typing import Any

from shared.errors import VectorsUnavailable
from workers.agents.agent import agent
from workers.agents.run import Run

PARTS = ("collect", "check", "compare", "draft")
PART_S = 0.8


@agent("demo.report")
async def report(run: Run, topic: str) -> dict[str, Any]:
    """Four steps of work and a model call: long enough to lose a worker in the middle."""
    parts = [await run.step(part, _work, part) for part in PARTS]
    reply = await run.chat(f"Write a headline about {topic}.", max_tokens=16, name="headline")
    return {"headline": reply.text.strip(), "parts": parts}


@agent("demo.corpus")
async def corpus(run: Run) -> int:
    """Wait until the built-in corpus, which a worker loads after its start, can be searched."""
    looks = 1
    while not await _is_found(run):
        looks += 1
        await asyncio.sleep(0.2)
    return looks


async def _is_found(run: Run) -> bool:
    try:
        return bool(await run.retrieve("what the fleet is", k=1))
    except VectorsUnavailable:
        return False


def _work(part: str) -> str:
    time.sleep(PART_S)
    return part
