"""From the loop's thread to Celery's: calls are left here and made over there."""

from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger()


class Mailbox:
    """Calls from the loop's thread, made on Celery's thread: many letters, one wake-up."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._hub: Any = None
        self._is_called = False

    def attach(self, hub: Any) -> None:
        """Use this kombu hub; again after every reconnection."""
        self._hub = hub
        self._is_called = False
        hub.timer.call_repeatedly(1.0, self.deliver)
        self.deliver()

    def put(self, call: Callable[..., Any], *args: Any) -> None:
        """Leave a call; safe from any thread."""
        self._letters.append((call, args))
        if self._hub is not None and not self._is_called:
            self._is_called = True
            self._hub.call_soon(self.deliver)

    def deliver(self) -> None:
        """Make the calls; on Celery's thread only."""
        self._is_called = False
        while self._letters:
            call, args = self._letters.popleft()
            try:
                call(*args)
            except Exception:  # Celery's callbacks must not stop one another: logged, the next one goes on
                log.exception("pool.callback_failed")
