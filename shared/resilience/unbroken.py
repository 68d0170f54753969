"""Work that goes on when its caller is cancelled: what was reserved must be given back."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_going_on: set[asyncio.Task[Any]] = set()  # the loop itself remembers tasks only weakly


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await work; when the awaiting task is cancelled, the work still runs to its end."""
    return await asyncio.shield(started(work))


def started(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Work that nobody needs to await; what it raises is then lost."""
    task = asyncio.ensure_future(work)
    _going_on.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled():
        task.exception()  # looked at: asyncio would complain of it otherwise
