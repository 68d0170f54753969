"""What a worker asks of its queues beside consuming them: how deep one is, and to have it taken off.

In a thread of its own: agents may keep the loop's other threads busy.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog
from celery import Celery
from celery.worker.state import revoked

from shared.broker.dead_letters import dead_letter
from shared.broker.depth import DepthGauge
from shared.broker.knobs import BrokerKnobs
from shared.broker.sorting import take_off
from shared.contracts import Priority, TaskMessage
from shared.errors import BadMessage
from workers.agents.consumer import task_of
from workers.agents.threads import DaemonThreads

log = structlog.get_logger()

SORT_S = 5.0
"""Seconds for which a queue is taken off at once, before another look at it."""


class QueueWatch:
    """Blocking questions to the broker, one after another.

    Args:
        app: Knows the tasks; its publisher takes what no worker can read to the dead-letter queue.
    """

    def __init__(self, knobs: BrokerKnobs, app: Celery) -> None:
        self._knobs = knobs
        self._app = app
        self._gauge = DepthGauge(knobs)
        self._thread = DaemonThreads(1, name="queue-watch")

    async def depth(self, priority: Priority) -> int:
        """How many messages of a priority wait."""
        return await self._asked(partial(self._gauge.ready, priority))

    async def sort(self, priority: Priority, keep: Callable[[Sequence[TaskMessage]], None]) -> int:
        """Hand the tasks of a priority's messages over, as fast as they come; returns how many."""
        read = partial(self._read, loop=asyncio.get_running_loop())
        return await self._asked(partial(take_off, self._knobs, priority, read=read, keep=keep, limit_s=SORT_S))

    async def _asked(self, question: Callable[[], int]) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._thread, question)

    def _read(self, message: Any, *, loop: asyncio.AbstractEventLoop) -> TaskMessage | None:
        try:
            task = task_of(message, self._app.tasks)
        except BadMessage as error:
            log.error("consumer.message_refused", reason=error.message, task=(message.headers or {}).get("task"))
            dead_letter(self._app.fleet_publisher, message, error.message).result()
            message.ack()
            return None
        if task is None or str(task.id) not in revoked:
            return task
        if asyncio.run_coroutine_threadsafe(self._app.fleet_host.hold_revoked(task), loop).result():
            message.ack()
        return None
