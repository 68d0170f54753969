"""A loop whose time belongs to the test: hours pass at once, and nothing happens outside."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, cast


class HandSelector(selectors.DefaultSelector):
    """Nothing ever happens outside: waiting moves the loop's clock and takes no time."""

    seconds = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout:
            self.seconds += timeout
        return found


class HandLoop(asyncio.SelectorEventLoop):
    """A loop whose hours pass at once."""

    def __init__(self) -> None:
        self._hand = HandSelector()
        super().__init__(self._hand)

    def time(self) -> float:
        return self._hand.seconds

    def block(self, seconds: float) -> None:
        """Let time pass while nothing else gets a turn."""
        self._hand.seconds += seconds


def at_once(main: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end in the loop's own time."""
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        return runner.run(main)


def block(seconds: float) -> None:
    """Let time pass while nothing else on the loop gets a turn."""
    cast(HandLoop, asyncio.get_running_loop()).block(seconds)
