"""Celery's consumer, made strict: nothing is acknowledged that was not understood, nothing is dropped unrecorded.

What the fleet has no use for (mingle, gossip, the 28 queues of delayed delivery) is left out, and the prefetch window
is the pool's, not the concurrency.
"""

import asyncio
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import amqp
import structlog
from celery.exceptions import CPendingDeprecationWarning, Ignore, WorkerShutdown
from celery.worker.consumer.consumer import Consumer
from celery.worker.request import Request
from celery.worker.state import revoked
from kombu.exceptions import ContentDisallowed, DecodeError

from shared.broker.dead_letters import dead_letter
from shared.broker.topology import mismatch
from shared.contracts import (
    CONTENT_TYPE,
    QUEUES,
    TASK_PREFIX,
    Headers,
    Priority,
    TaskMessage,
    check_storable,
    parse_headers,
)
from shared.errors import BadInput, BadMessage, Misconfigured
from workers.agents.events import failed, left

log = structlog.get_logger()

EVENTS_EVERY_S = 0.25
EVENTS_BUFFERED = 500
RECONNECT_S = (0.5, 0.5, 2.0)
"""First wait between two tries to reach the broker, what each adds, and the longest; Celery's own grow to 30 s."""
PRIORITIES: dict[str, Priority] = {queue: priority for priority, queue in QUEUES.items()}

SWITCHED_OFF = {"without_mingle": True, "without_gossip": True}


class FleetConsumer(Consumer):  # type: ignore[misc]
    """`worker_consumer`: checks each message before it takes a slot."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """The stock steps, less what the fleet has no use for."""

        default_steps: ClassVar = [
            step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    initial_prefetch_count: int
    _is_name_taken = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options = {**(kwargs.pop("worker_options", None) or {}), **SWITCHED_OFF}
        super().__init__(*args, worker_options=options, **kwargs)
        self.initial_prefetch_count = min(self.initial_prefetch_count, self.app.fleet_prefetch)

    def ensure_connected(self, conn: Any) -> Any:
        """Try again every other second, and say that the broker is away meanwhile."""
        start_s, step_s, max_s = RECONNECT_S
        connect = conn.ensure_connection

        def patiently(errback: Any, *args: Any, **kwargs: Any) -> Any:
            def told(error: Any, wait_s: float) -> None:
                self._broker_is(away=True)
                errback(error, wait_s)

            return connect(told, *args, interval_start=start_s, interval_step=step_s, interval_max=max_s, **kwargs)

        conn.ensure_connection = patiently
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """The broker is gone, or has this worker's name in use: then trying again at once helps nobody.

        Raises: WorkerShutdown when its queues are not ours: then trying again never helps.
        """
        if (wrong := mismatch(exc)) is not None:
            log.critical("worker.refused_to_start", code=Misconfigured.code, cause=wrong)
            raise WorkerShutdown(2)
        is_taken = isinstance(exc, amqp.exceptions.ResourceLocked)
        if is_taken and not self._is_name_taken:
            log.error(
                "consumer.name_taken", name=self.hostname,
                hint="a connection of a worker of this name is still open: it is waited for; should that worker be "
                "running, give each its own name, for example -n worker-2@%h",
            )  # fmt: skip
        self._is_name_taken = is_taken
        with warnings.catch_warnings():  # about a setting that is set
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        if is_taken:
            time.sleep(RECONNECT_S[-1])

    def on_close(self) -> None:
        """The connection is gone, or about to be."""
        self.pool.tell_celery = None
        self._broker_is(away=True)
        super().on_close()

    def _broker_is(self, *, away: bool) -> None:
        self.pool.loop.call_soon_threadsafe(partial(self.app.fleet_host.broker_is, away=away))

    def register_with_event_loop(self, hub: Any) -> None:
        """Celery is connected (again): send its events a few times a second, not with every turn of its loop."""
        super().register_with_event_loop(hub)
        self._is_name_taken = False
        self._broker_is(away=False)
        dispatcher = self.event_dispatcher
        if dispatcher is not None:
            self.pool.tell_celery = dispatcher.send if dispatcher.enabled else None
            publish_unconfirmed(dispatcher.producer.channel)
            dispatcher.buffer_limit = EVENTS_BUFFERED
            dispatcher.on_send_buffered = None
            hub.timer.call_repeatedly(EVENTS_EVERY_S, self._flush_events)

    def _flush_events(self) -> None:
        """Send what runs have told since the last time."""
        self.pool.pass_events_on()
        super()._flush_events()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """The stock handler behind a check of the message."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                task = task_of(message, self.app.tasks)
            except BadMessage as error:
                self.refuse(message, error.message)
            else:
                if task is not None and str(task.id) in revoked:
                    self.pass_on(message, task, hold=self.app.fleet_host.hold_revoked)
                elif task is None or TASK_PREFIX + task.agent in self.app.tasks:
                    handle(message)
                else:
                    self.pass_on(message, task, hold=self.app.fleet_host.hold_for_others)

        return on_task_received

    def pass_on(self, message: Any, task: TaskMessage, *, hold: Callable[[TaskMessage], Any]) -> None:
        """Leave a task to the ledger: for workers that have its agent where this one lacks it, or for its end."""
        log.debug("consumer.message_passed_on", task_id=str(task.id), agent=task.agent)
        held = asyncio.run_coroutine_threadsafe(hold(task), self.pool.loop)

        def settle() -> None:
            if held.cancelled() or held.exception() is not None:
                message.reject_log_error(log, self.connection_errors, requeue=True)
            elif held.result():
                message.ack_log_error(log, self.connection_errors)
            else:
                self.refuse(message, nobody_has(TASK_PREFIX + task.agent))

        held.add_done_callback(lambda _: self.call_soon(settle))

    def refuse(self, message: Any, reason: str) -> None:
        """Send a message that no worker can run to the dead-letter queue; the keeper records it."""
        log.error("consumer.message_refused", reason=reason, task=(message.headers or {}).get("task"))
        copied = dead_letter(self.app.fleet_publisher, message, reason)
        copied.add_done_callback(lambda done: self.call_soon(self._settle, message, done.exception()))

    def _settle(self, message: Any, error: BaseException | None) -> None:
        """On Celery's thread, once the copy is confirmed or failed; a message that was not copied comes back."""
        settle = message.ack_log_error if error is None else message.reject_log_error
        settle(log, self.connection_errors, **({} if error is None else {"requeue": True}))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """A message that is not of Celery's protocol."""
        self.refuse(message, "the message has no Celery headers")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that this worker does not have."""
        self.refuse(message, nobody_has(exc.args[0]))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Headers that Celery cannot use."""
        self.refuse(message, f"Celery cannot read the headers: {exc}")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A body that is not what its content type says; stock Celery would acknowledge it away."""
        self.refuse(message, f"the body cannot be decoded: {exc}")


def publish_unconfirmed(channel: Any) -> None:
    """Events are for people who look: a confirmation for each would only stop Celery's thread for a round trip."""
    if isinstance(channel, amqp.Channel):
        channel.basic_publish = partial(amqp.Channel.basic_publish, channel)


class FleetRequest(Request):  # type: ignore[misc]
    """Hands the body on as `check` has read it, instead of reading it once more in the pool."""

    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self._body = self._payload
        self._content_type = self._content_encoding = None

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Also how a run ends that was put down, which stock Celery tells nobody: it would look started for ever."""
        exception = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps some
        if isinstance(exception, Ignore) and exception.args and (event := left(exception.args[0])) is not None:
            kind, fields = event
            self.send_event(kind, **fields)
        return super().on_failure(exc_info, *args, **kwargs)

    def send_event(self, type: str, **fields: Any) -> None:
        """Failures go without secrets."""
        if type == "task-failed":
            _, told = failed(str(fields.pop("exception", "")), str(fields.pop("traceback", "")))
            fields |= told
        super().send_event(type, **fields)


def task_of(message: Any, known: Any) -> TaskMessage | None:
    """The agent's task that a message brings, for the ledger; None for any other Celery task.

    Raises: BadMessage with one sentence.
    """
    take_priority(message)
    headers = check(message, known)
    if headers is None:
        return None
    args, kwargs, _ = message.payload
    agent = headers.task.removeprefix(TASK_PREFIX)
    return TaskMessage(agent, kwargs, tuple(args), headers.id, headers.fleet, headers.token)


def nobody_has(name: str) -> str:
    """Why a message is refused whose task is not known."""
    return f"no worker has a task named {name!r}"


def priority_of(message: Any) -> Priority:
    """Which queue it came from."""
    return PRIORITIES.get((message.delivery_info or {}).get("routing_key", ""), "normal")


def take_priority(message: Any) -> None:
    """A message that does not state its priority has that of its queue: any Celery client can so choose one."""
    priority = priority_of(message)
    if priority != "normal" and isinstance(message.headers, dict):
        fleet = message.headers.get("fleet")
        if fleet is None or isinstance(fleet, dict):
            message.headers["fleet"] = {"priority": priority, **(fleet or {})}


def check(message: Any, known: Any) -> Headers | None:
    """Whether a worker could run this message, this one or another; agents must also keep the fleet's contract.

    Returns: What the headers of an agent's message say; None for any other Celery task.
    Raises: BadMessage with one sentence.
    """
    headers = message.headers or {}
    name, read = headers.get("task"), None
    if not isinstance(name, str):
        raise BadMessage("the message has no header 'task'")
    if name not in known and not name.startswith(TASK_PREFIX):
        raise BadMessage(nobody_has(name))
    if name.startswith(TASK_PREFIX):
        if headers.get("eta") or headers.get("expires"):
            raise BadMessage("headers eta and expires are not supported: use fleet.deadline_at")
        read = parse_headers(headers)
    try:
        if message.content_type == CONTENT_TYPE and isinstance(message.body, bytes | str):
            message._decoded_cache = json.loads(message.body)  # kombu's own JSON reader is five times slower
        payload = message.payload
    except (DecodeError, ContentDisallowed, ValueError, RecursionError) as error:
        raise BadMessage(f"the body is not JSON: {error}") from None
    if not (
        isinstance(payload, list)
        and len(payload) == 3
        and isinstance(payload[0], list)
        and isinstance(payload[1], dict)
    ):
        raise BadMessage("the body must be [array of inputs, object of inputs, embed]")
    try:
        check_storable(payload[:2])
    except BadInput as error:
        raise BadMessage(error.message) from None
    hide_inputs(headers, payload[1])
    return read


def hide_inputs(headers: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Celery shows argsrepr and kwargsrepr in events and Flower: names are enough, values may be secret."""
    headers["argsrepr"] = "()"
    headers["kwargsrepr"] = f"{{{', '.join(sorted(kwargs))}}}"
