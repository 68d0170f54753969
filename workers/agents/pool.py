"""An asyncio pool for stock Celery: thousands of `async def` tasks in flight on one loop in one thread.

Celery's own tracer runs unmodified, in a greenlet per task; the task's body hands its coroutine to the loop with
`await_only`. Celery's bookkeeping (acknowledge, events, active set) stays on Celery's thread: what a run reports goes
there through a mailbox, so no state of Celery is touched from two threads. Tasks that come straight from the ledger
share the slots with messages, by turns.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from contextvars import ContextVar, copy_context
from itertools import count
from typing import Any, Literal, Protocol

import structlog
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerLostError, WorkerShutdown, WorkerTerminate
from celery.worker.state import maybe_shutdown
from sqlalchemy.util.concurrency import greenlet_spawn

from shared.contracts import DEFAULT_TENANT, QUEUES, TASK_PREFIX, Priority
from shared.errors import FleetError
from workers.agents.mailbox import Mailbox
from workers.agents.sources import Grant, Sources
from workers.agents.threads import STEPS, in_thread

log = structlog.get_logger()

Reason = Literal["drain", "revoked", "fenced", "cancelled"]
PRIORITIES: dict[str, Priority] = {queue: priority for priority, queue in QUEUES.items()}
STARTUP_TICK_S = 0.2
DRAIN_TICK_S = 0.05
LEAVE_S = 2.0
"""Seconds that runs get to end after they were cut; those that go on all the same are handed back as they are."""
STOP_S = 20.0
"""Seconds that the host gets to leave; it sets limits to its own steps, unless an agent blocks the loop."""


class Host(Protocol):
    """Who keeps the worker's place in the ledger while the pool runs tasks."""

    async def start(self, pool: "TaskPool") -> None:
        """Called on the loop before the first task."""

    def shut(self) -> None:
        """Called on the loop as soon as no new task shall start; more than once is once."""

    def put_down(self) -> None:
        """Called on the loop, again and again, once running tasks shall end at their next step."""

    async def stop(self) -> None:
        """Called on the loop after the last task."""

    @property
    def drain_s(self) -> float:
        """Seconds that running tasks get to finish."""

    @property
    def cut_s(self) -> float:
        """Seconds more that they get to reach the end of a step."""

    @property
    def weights(self) -> dict[Priority, int]:
        """The priorities that are served here, each with its share of the slots."""

    def runs_here(self, task_name: str) -> bool:
        """Whether this Celery task awaits on the loop; any other runs in a thread."""


class Delivery:
    """One message from the broker, from reservation to its end; or one task that came straight from the ledger."""

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
        self.is_accepted = accept is None
        self.cancel_reason: Reason | None = None

    @property
    def tenant(self) -> str:
        """Whose turn it takes."""
        header = self.args[2].get("fleet")
        return str(header.get("tenant", DEFAULT_TENANT)) if isinstance(header, dict) else DEFAULT_TENANT

    @property
    def priority(self) -> Priority:
        """Which queue it came from."""
        return PRIORITIES.get((self.args[2].get("delivery_info") or {}).get("routing_key", ""), "normal")

    @property
    def is_agents(self) -> bool:
        """Whether it is for an agent, rather than any other Celery task."""
        return str(self.args[0]).startswith(TASK_PREFIX)

    def accept(self) -> None:
        """The claim is on disk: acknowledge the message and count the task as started."""
        if not self.is_accepted:
            self.is_accepted = True
            self.pool.mailbox.put(self.accept_callback, self.token, time.monotonic())

    def cancel(self, reason: Reason) -> None:
        """End the run at its next await; call on the loop. A worker that lost its place writes nothing, whatever came
        before."""
        if self.task is None:
            return
        if self.cancel_reason is None or (reason == "fenced" and self.cancel_reason != "fenced"):
            self.cancel_reason = reason
            self.task.cancel()

    def terminate(self, _signal: object = None) -> None:
        """Celery's `revoke(terminate=True)`; called on Celery's thread."""
        self.pool.loop.call_soon_threadsafe(self.cancel, "revoked")


current_delivery: ContextVar[Delivery] = ContextVar("current_delivery")


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
        self.tell_celery: Callable[..., Any] | None = None
        self._told: deque[tuple[str, dict[str, Any]]] = deque()
        self._free = self.limit
        self._arrivals: deque[Delivery] = deque()
        self._sources: Sources[Delivery] = Sources(self.host.weights)
        self._granted: Counter[Priority] = Counter()
        self._is_granted = asyncio.Event()
        self._is_called = False
        self._is_closing = False
        self._tokens = count(1)
        self._clean = copy_context()
        self._thread = threading.Thread(target=self.loop.run_forever, name="agents", daemon=True)

    def on_start(self) -> None:
        """Start the loop and wait for its host; a host that cannot start ends the worker with one sentence."""
        STEPS.most = self.limit
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self.host.start(self), self.loop)
        try:
            while not wait([started], timeout=STARTUP_TICK_S).done:
                maybe_shutdown()  # SIGTERM only sets a flag, and the database may be away for hours
            started.result()
        except (WorkerShutdown, WorkerTerminate):
            started.cancel()
            raise
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
        """A reserved message: start it once it gets a slot."""
        delivery = Delivery(self, next(self._tokens), target, args or (), accept_callback, callback)
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
        self.loop.call_soon_threadsafe(self.host.shut)

    def on_stop(self) -> None:
        """Drain: Celery's timers, acknowledgements and heartbeats keep flowing while runs end."""
        self.on_close()
        put_down_at = time.monotonic() + self.host.drain_s
        cut_at = put_down_at + self.host.cut_s
        while self.in_flight:
            self._tick_hub()
            if time.monotonic() >= cut_at + LEAVE_S:
                log.error("pool.runs_left_behind", runs=self.in_flight, hint="agents must let CancelledError through")
                break
            if time.monotonic() >= cut_at:
                self.loop.call_soon_threadsafe(self.cancel_all, "drain")
            elif time.monotonic() >= put_down_at:
                self.loop.call_soon_threadsafe(self.host.put_down)
            time.sleep(DRAIN_TICK_S)
        self._tick_hub()
        self._on_loop(self.host.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)

    def grow(self, _n: int = 1) -> None:
        """Celery's `pool_grow`, and of `pool_shrink` the same. Raises: NotImplementedError, which it answers."""
        raise NotImplementedError("not supported: set FLEET_WORKER_CONCURRENCY (or -c) and restart the worker")

    shrink = grow

    def on_terminate(self) -> None:
        """Celery's cold shutdown."""
        self.loop.call_soon_threadsafe(self.cancel_all, "drain")

    def cancel_all(self, reason: Reason) -> None:
        """End every run; call on the loop."""
        for delivery in list(self.deliveries.values()):
            if delivery.is_accepted or reason != "fenced":  # what is not claimed yet has nothing to lose
                delivery.cancel(reason)

    def ask(self, priority: Priority, slots: int) -> None:
        """How many slots tasks from the ledger could use now; call on the loop."""
        self._sources.ask(priority, slots)
        self._fill()

    async def granted(self) -> Counter[Priority]:
        """Slots that asking has brought, taken from now on; waits for the first one. `adopt` or `give_back` each."""
        while not self._granted:
            self._is_granted.clear()
            await self._is_granted.wait()
        taken, self._granted = self._granted, Counter()
        return taken

    def give_back(self, slots: int) -> None:
        """Slots that were granted and are of no use; fewer than none: borrowed ones, for tasks that run here anyway."""
        self._free += slots
        self._fill()

    def adopt(self, work: Callable[[], Coroutine[Any, Any, Any]], *, name: str) -> Delivery:
        """Run a task that is claimed already in a slot that was granted; call on the loop."""
        delivery = Delivery(self, next(self._tokens), work, (), None, None)
        self.deliveries[delivery.token] = delivery
        self._begin(delivery, self._run_adopted(delivery), name=name)
        return delivery

    def tell(self, event: str, **facts: Any) -> None:
        """An event for those who watch Celery, sent from its own thread; dropped while it is not connected."""
        if self.tell_celery is not None:
            self._told.append((event, {"timestamp": time.time(), **facts}))

    def pass_events_on(self) -> None:
        """Give Celery what was told; on its thread only, before it sends its events: no need to wake it for each."""
        while self._told:
            event, facts = self._told.popleft()
            if self.tell_celery is not None:
                self.tell_celery(event, **facts)

    def reserved(self) -> Counter[tuple[Priority, str]]:
        """Messages that are not claimed yet, by priority and tenant."""
        waiting = [one for one in list(self.deliveries.values()) if not one.is_accepted and one.is_agents]
        return Counter((one.priority, one.tenant) for one in waiting)

    @property
    def has_messages(self) -> bool:
        """Whether messages wait for a slot."""
        return self._sources.waiting > 0 or bool(self._arrivals)

    @property
    def in_flight(self) -> int:
        """Claimed runs."""
        return sum(delivery.is_accepted for delivery in list(self.deliveries.values()))

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "in-flight": self.in_flight, "reserved": len(self.deliveries) - self.in_flight}

    def _start_arrivals(self) -> None:
        self._is_called = False
        while self._arrivals:
            delivery = self._arrivals.popleft()
            self._sources.add(delivery.priority, delivery.tenant, delivery)
        self._fill()

    def _fill(self) -> None:
        """Give free slots to those whose turn it is."""
        while self._free > 0 and not self._is_closing:
            turn = self._sources.next()
            if turn is None:
                return
            self._free -= 1
            if isinstance(turn, Grant):
                self._granted[turn.priority] += 1
                self._is_granted.set()
            else:
                self._begin(turn, self._run(turn), name=str(turn.args[1]))

    def _begin(self, delivery: Delivery, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Under its task's id, which an exhausted pool tells; without what the run before it left in its context."""
        delivery.task = self.loop.create_task(work, name=name, context=self._clean.copy())

    async def _run(self, delivery: Delivery) -> None:
        try:
            current_delivery.set(delivery)
            if self.host.runs_here(delivery.args[0]):
                ended = await greenlet_spawn(delivery.target, *delivery.args)
            else:
                delivery.accept()
                ended = await in_thread(delivery.target, *delivery.args)
            self.mailbox.put(delivery.callback, ended)
        except asyncio.CancelledError:
            self.mailbox.put(delivery.callback, (1, _lost("the run was cancelled before it was claimed"), 0.0))
        except Exception as error:  # of a Celery task that wants to end its process: Celery must hear of an end
            log.exception("pool.task_failed")
            self.mailbox.put(delivery.callback, (1, _lost(repr(error)), 0.0))
        finally:
            self._leave(delivery)

    async def _run_adopted(self, delivery: Delivery) -> None:
        try:
            current_delivery.set(delivery)
            await delivery.target()
        except asyncio.CancelledError:
            log.info("pool.adopted_cancelled", reason=delivery.cancel_reason)
        except Exception:  # the slot must come back whatever happens: logged, the ledger still has the task
            log.exception("pool.adopted_failed")
        finally:
            self._leave(delivery)

    def _leave(self, delivery: Delivery) -> None:
        delivery.task = None  # or delivery, task and its context hold one another until the next collection
        self.deliveries.pop(delivery.token, None)
        self._free += 1
        self._fill()

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work on the loop without letting Celery's side stand still."""
        ended = asyncio.run_coroutine_threadsafe(work, self.loop)
        until = time.monotonic() + STOP_S
        while not ended.done():
            if time.monotonic() >= until:
                log.error("pool.loop_blocked", hint="an agent blocks the loop: use run.step")
                return
            self._tick_hub()
            time.sleep(DRAIN_TICK_S / 10)
        if ended.exception() is not None:
            log.error("pool.host_failed", cause=repr(ended.exception()))

    def _tick_hub(self) -> None:
        self.mailbox.deliver()
        _quietly(self.pass_events_on)
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


def _lost(cause: str) -> ExceptionInfo:
    try:
        raise WorkerLostError(cause)
    except WorkerLostError:
        return ExceptionInfo()
