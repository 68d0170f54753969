"""What an agent asks of its journal, in short: sleep, wait for a signal, do a step; and what it waits for."""

import asyncio
from typing import Any

from shared.errors import WaitTimeout
from shared.ledger.journal import Journal, Look
from shared.ledger.suspension import Suspended, Suspension

LEAVES = (Suspended, BaseExceptionGroup)
"""How a run leaves its agent: by itself, or in the group of a TaskGroup."""


class Post:
    """What is waited for: it comes when somebody sets `value`."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.looks = 0
        self.wakes = 3

    async def look(self) -> Look:
        self.looks += 1
        return Look(self.value is not None, self.value, self.wakes)


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


async def sleep(journal: Journal, seconds: float, name: str = "sleep") -> None:
    await journal.wait(
        name, kind="sleep", request=seconds, wait_s=seconds, look=Post().look, suspension=Suspension(kind="sleep"),
        expired=lambda: None,
    )  # fmt: skip


async def wait_for(journal: Journal, post: Post, *, wait_s: float | None = None, name: str = "ok") -> Any:
    return await journal.wait(
        f"signal.{name}", kind="signal", request=wait_s, wait_s=wait_s, look=post.look,
        suspension=Suspension(kind="signal", signals=(name,)), expired=lambda: WaitTimeout("too late"),
    )  # fmt: skip


async def step(journal: Journal, name: str, seconds: float = 0.0, **more: Any) -> str:
    async def call() -> str:
        await asyncio.sleep(seconds)
        return name

    return str(await journal.step(name, kind="step", request=None, call=call, **more))
