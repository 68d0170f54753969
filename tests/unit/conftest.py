"""Time that belongs to a test: waits are noted, not waited for."""

import asyncio
import threading
from typing import Any

import pytest


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait of this thread, without waiting; loops of other threads, such as a server's, sleep as ever."""
    waits: list[float] = []
    mine, really_sleep = threading.get_ident(), asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        if threading.get_ident() != mine:
            return await really_sleep(seconds, result)
        waits.append(seconds)
        return result

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waits
