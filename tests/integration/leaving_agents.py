"""Agents that do not let their worker leave."""

import asyncio
import time
from pathlib import Path

from celery.exceptions import SoftTimeLimitExceeded

from workers.agents.agent import agent
from workers.agents.run import Run


@agent("leaving.clings")
async def clings(run: Run, diary: str) -> None:
    """Take no cancellation for an answer."""
    await run.step("begin", begin, diary)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@agent("leaving.overstays", soft_limit_s=0.2, hard_limit_s=0.4)
async def overstays(run: Run, diary: str) -> None:
    """Take neither of its limits for an answer."""
    begin(diary)  # as no step: a busy machine may need longer for one than its first limit
    while True:
        try:
            await asyncio.sleep(60)
        except (SoftTimeLimitExceeded, asyncio.CancelledError):
            continue


@agent("leaving.blocks")
async def blocks(run: Run, diary: str) -> None:
    """Hand a thread a call without an end."""
    await run.step("block", block, diary)


def begin(diary: str) -> None:
    """Say so."""
    Path(diary).touch()


def block(diary: str) -> None:
    """Say so, and do not return."""
    begin(diary)
    time.sleep(600)
