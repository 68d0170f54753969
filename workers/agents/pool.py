"""An asyncio pool for stock Celery: thousands of `async def` tasks in flight on one loop in one thread.

Celery's own tracer runs unmodified, in a greenlet per task; the task's body hands its coroutine to the loop with
`await_only`. Celery's bookkeeping (acknowledge, events, active set) stays on Celery's thread: what a run reports goes
there through a mailbox, so no state of Celery is touched from two threads.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import structlog
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerLostError
from sqlalchemy.util.concurrency import greenlet_spawn

from shared.errors import FleetError

log = structlog.get_logger()

Reason = Literal["drain", "revoked", "fenced"]
STARTUP_TICK_S = 0.2
DRAIN_TICK_S = 0.05


class Host(Protocol):
    """Who keeps the worker's place in the ledger while the pool runs tasks."""

    async def start(self, pool: "TaskPool") -> None:
        """Called on the loop before the first task."""

    async def drain(self) -> None:
        """Called on the loop when no new task will start."""

    async def stop(self) -> None:
        """Called on the loop after the last task."""

    @property
    def drain_s(self) -> float:
        """Seconds that running tasks get to finish."""

    def runs_here(self, task_name: str) -> bool:
        """Whether this Celery task awaits on the loop; any other runs in a thread."""


class Delivery:
    """One message from the broker, from reservation to its end."""

    __slots__ = (
        "__weakref__",
        "accept_callback",
        "args",
        "callback",
        "cancel_reason",
        "is_accepted",
        "pool",
        "target",
        "task",
        "token",
    )

    def __init__(
        self, pool: "TaskPool", token: int, target: Callable[..., Any], args: Any, accept: Any, done: Any
    ) -> None:
        self.pool = pool
        self.token = token
        self.target = target
        self.args = args
        self.accept_callback = accept
        self.callback = done
        self.task: asyncio.Task[None] | None = None
        self.is_accepted = False
        self.cancel_reason: Reason | None = None

    def accept(self) -> None:
        """The claim is on disk: acknowledge the message and count the task as started."""
        if not self.is_accepted:
            self.is_accepted = True
            self.pool.mailbox.put(self.accept_callback, self.token, time.monotonic())

    def cancel(self, reason: Reason) -> None:
        """End the run at its next await; call on the loop."""
        if self.cancel_reason is None and self.task is not None:
            self.cancel_reason = reason
            self.task.cancel()

    def terminate(self, _signal: object = None) -> None:
        """Celery's `revoke(terminate=True)`; called on Celery's thread."""
        self.pool.loop.call_soon_threadsafe(self.cancel, "revoked")


current_delivery: ContextVar[Delivery] = ContextVar("current_delivery")


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


class TaskPool(BasePool):  # type: ignore[misc]
    """Celery's `worker_pool`. The app carries its host as `app.fleet_host`."""

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.host: Host = self.app.fleet_host
        self.mailbox = Mailbox()
        self.loop = asyncio.new_event_loop()
        self.deliveries: dict[int, Delivery] = {}
        self._free = self.limit
        self._arrivals: deque[Delivery] = deque()
        self._is_called = False
        self._is_closing = False
        self._token = 0
        self._thread = threading.Thread(target=self.loop.run_forever, name="agents", daemon=True)

    def on_start(self) -> None:
        """Start the loop and wait for its host; a host that cannot start ends the worker with one sentence."""
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self.host.start(self), self.loop)
        try:
            started.result()
        except FleetError as error:
            log.critical("worker.refused_to_start", code=error.code, cause=error.message)
            raise SystemExit(2) from None

    def register_with_event_loop(self, hub: Any) -> None:
        """Celery is connected (again)."""
        self.mailbox.attach(hub)

    def on_apply(
        self, target: Callable[..., Any], args: Any = None, kwargs: Any = None, callback: Any = None,
        accept_callback: Any = None, **_: Any,
    ) -> Delivery:  # fmt: skip
        """A reserved message: start it once a slot is free."""
        self._token += 1
        delivery = Delivery(self, self._token, target, args or (), accept_callback, callback)
        self.deliveries[delivery.token] = delivery
        self._arrivals.append(delivery)
        if not self._is_called:
            self._is_called = True
            self.loop.call_soon_threadsafe(self._start_arrivals)
        return delivery

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Celery's name for a task is the `pid` it was accepted with: our token."""
        delivery = self.deliveries.get(pid)
        if delivery is not None:
            delivery.terminate(signal)

    def on_close(self) -> None:
        """No new task starts from here on; what is reserved goes back to the broker unacknowledged."""
        self._is_closing = True

    def on_stop(self) -> None:
        """Drain: Celery's timers, acknowledgements and heartbeats keep flowing while runs end."""
        self._is_closing = True
        self._on_loop(self.host.drain())
        deadline = time.monotonic() + self.host.drain_s
        is_cut = False
        while any(delivery.is_accepted for delivery in list(self.deliveries.values())):
            self._tick_hub()
            if not is_cut and time.monotonic() >= deadline:
                is_cut = True
                self.loop.call_soon_threadsafe(self.cancel_all, "drain")
            time.sleep(DRAIN_TICK_S)
        self._tick_hub()
        self._on_loop(self.host.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)

    def on_terminate(self) -> None:
        """Celery's cold shutdown."""
        self.loop.call_soon_threadsafe(self.cancel_all, "drain")

    def cancel_all(self, reason: Reason) -> None:
        """End every run; call on the loop."""
        for delivery in list(self.deliveries.values()):
            if delivery.is_accepted or reason != "fenced":  # what is not claimed yet has nothing to lose
                delivery.cancel(reason)

    @property
    def in_flight(self) -> int:
        """Claimed runs."""
        return sum(delivery.is_accepted for delivery in list(self.deliveries.values()))

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "in-flight": self.in_flight, "reserved": len(self.deliveries) - self.in_flight}

    def _start_arrivals(self) -> None:
        self._is_called = False
        while self._arrivals and self._free > 0 and not self._is_closing:
            delivery = self._arrivals.popleft()
            self._free -= 1
            delivery.task = self.loop.create_task(self._run(delivery))

    async def _run(self, delivery: Delivery) -> None:
        try:
            current_delivery.set(delivery)
            if self.host.runs_here(delivery.args[0]):
                ended = await greenlet_spawn(delivery.target, *delivery.args)
            else:
                delivery.accept()
                ended = await asyncio.to_thread(delivery.target, *delivery.args)
            self.mailbox.put(delivery.callback, ended)
        except asyncio.CancelledError:
            self.mailbox.put(delivery.callback, (1, _lost(), 0.0))
        finally:
            delivery.task = None  # or delivery, task and its context hold one another until the next collection
            self.deliveries.pop(delivery.token, None)
            self._free += 1
            if self._arrivals:
                self._start_arrivals()

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work on the loop without letting Celery's side stand still."""
        ended = asyncio.run_coroutine_threadsafe(work, self.loop)
        while not ended.done():
            self._tick_hub()
            time.sleep(DRAIN_TICK_S / 10)
        if ended.exception() is not None:
            log.error("pool.host_failed", cause=repr(ended.exception()))

    def _tick_hub(self) -> None:
        self.mailbox.deliver()
        hub = self.mailbox._hub
        if hub is None:
            return
        for call in hub._pop_ready():
            _quietly(call)
        _quietly(lambda: hub.fire_timers(max_timers=10))


def _quietly(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:  # the broker may be gone while we drain: the ledger, not the ack, is what counts
        log.info("pool.hub_callback_failed", cause=repr(error))


def _lost() -> ExceptionInfo:
    try:
        raise WorkerLostError("the run was cancelled before it was claimed")
    except WorkerLostError:
        return ExceptionInfo()
