"""`FleetBreaker`: pybreaker's surface (listeners, names, exclusions, errors) over the fleet's own state machine.

What differs from the class it extends, each measured there: the guarded call runs outside every lock; an awaitable is
judged when it has ended, not when it was made; cancellation and excluded errors are neutral instead of successes; an
excluded class may have any metaclass; the call that trips the breaker raises its own error; open times are exact.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import wraps
from inspect import CO_COROUTINE, iscoroutinefunction
from time import perf_counter
from types import GeneratorType
from typing import Any, cast

import pybreaker

from shared.errors import BreakerOpen
from shared.resilience.circuit import Mode, Operate
from shared.resilience.engines import Engine, Entry, LocalEngine, SharedEngine
from shared.resilience.exchange import BlockingStore, GateStore
from shared.resilience.knobs import BreakerKnobs
from shared.resilience.outcome import Learn
from shared.resilience.unbroken import to_its_end

LOCAL_ORIGIN = frozenset({"SoftTimeLimitExceeded"})
"""Errors, by name because their libraries live elsewhere, that a worker inflicts on its own calls."""

PLAIN = frozenset({type(None), bool, int, float, str, bytes, dict, list, tuple})
"""Types of results that are not worth a second look."""

PUBLIC: dict[Mode, str] = {"forced-open": pybreaker.STATE_OPEN, "disabled": pybreaker.STATE_OPEN}


class CircuitOpen(BreakerOpen, pybreaker.CircuitBreakerError):  # type: ignore[misc]
    """The call was not sent; caught as ours and as pybreaker's."""


def circuit_open(name: str, *, mode: Mode, reason: str, retry_after_s: float | None) -> CircuitOpen:
    """The error of a refused call."""
    when = "until an operator closes it" if retry_after_s is None else f"retry after {retry_after_s:.1f} s"
    message = f"Calls to {name} are stopped ({mode}: {reason}); {when}"
    return CircuitOpen(message, retry_after_s=retry_after_s, key=name, state=mode, reason=reason)


class FleetBreaker(pybreaker.CircuitBreaker):  # type: ignore[misc]
    """Guards calls to one key, from threads and from asyncio.

    Args:
        store: For threads; None with no `async_store` either: this process alone.
        async_store: For asyncio.
        exclude: Exception types, or predicates, that say nothing about the endpoint.
    """

    def __init__(
        self,
        name: str,
        *,
        knobs: BreakerKnobs | None = None,
        store: BlockingStore | None = None,
        async_store: GateStore | None = None,
        exclude: Iterable[type[BaseException] | Callable[[Any], bool]] = (),
        listeners: Iterable[Any] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._knobs = knobs or BreakerKnobs()
        self._engine: Engine
        if store is None and async_store is None:
            self._engine = LocalEngine(self._knobs, clock)
        else:
            self._engine = SharedEngine(name, self._knobs, store, async_store)
        self._seen: Mode = "closed"
        super().__init__(
            fail_max=self._knobs.failures_in_a_row,
            reset_timeout=self._knobs.open_s,
            success_threshold=self._knobs.successes_to_close,
            exclude=list(exclude),
            listeners=list(listeners),
            name=name,
            throw_new_error_on_trip=False,
        )

    # The guarded call.

    def call(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call; an async function gives an awaitable, a generator function a generator, both guarded to their end.

        Raises: CircuitOpen, or what the function raises.
        """
        code = getattr(func, "__code__", None)
        if code is not None and code.co_flags & CO_COROUTINE:
            return self.call_async(func, *args, **kwargs)
        entry = self._enter(func, args, kwargs)
        began_s = perf_counter()
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._failed(entry, perf_counter() - began_s, error)
            raise
        if type(result) not in PLAIN:
            if isinstance(result, GeneratorType):
                return self._to_its_last_item(entry, result)
            if hasattr(type(result), "__await__"):
                return self._to_its_end(entry, result)
        self._succeeded(entry, perf_counter() - began_s)
        return result

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Guard a block: `with breaker.calling(): …`, in coroutines too where the breaker is this process's own."""
        entry = self._enter(self.calling, (), {})
        began_s = perf_counter()
        try:
            yield
        except BaseException as error:
            self._failed(entry, perf_counter() - began_s, error)
            raise
        self._succeeded(entry, perf_counter() - began_s)

    async def call_async(self, func: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Await an async function; see `call`."""
        entry = await self._enter_async(func, args, kwargs)
        return await self._to_its_end(entry, func(*args, **kwargs))

    @asynccontextmanager
    async def acalling(self) -> AsyncIterator[None]:
        """Guard a block: `async with breaker.acalling(): …`."""
        entry = await self._enter_async(self.acalling, (), {})
        began_s = perf_counter()
        try:
            yield
        except BaseException as error:
            await self._ended_async(entry, perf_counter() - began_s, error)
            raise
        await self._ended_async(entry, perf_counter() - began_s, None)

    def __call__(self, *functions: Callable[..., Any], **_: Any) -> Any:
        """As a decorator, `@breaker` or `@breaker()`; an async function stays one."""

        def guarded(func: Callable[..., Any]) -> Callable[..., Any]:
            if iscoroutinefunction(func):

                @wraps(func)
                async def ours_async(*args: Any, **kwargs: Any) -> Any:
                    return await self.call_async(func, *args, **kwargs)

                return ours_async

            @wraps(func)
            def ours(*args: Any, **kwargs: Any) -> Any:
                return self.call(func, *args, **kwargs)

            return ours

        return guarded(*functions) if functions else guarded

    # What it knows.

    @property
    def current_state(self) -> str:
        """One of pybreaker's three; `get_stats()` tells an operator's states apart. As last seen, without asking."""
        mode = self._engine.mode_now() or self._seen
        return PUBLIC.get(mode, mode)

    @property
    def state(self) -> Any:
        """The state as pybreaker's object, for its name."""
        return pybreaker.CircuitBreakerState(self, self.current_state)

    @property
    def fail_counter(self) -> int:
        """Failures in a row."""
        return self._engine.stats(str(self.name)).failure_count

    @property
    def success_counter(self) -> int:
        """Probes that succeeded in this round, as far as this process alone decides; shared: 0."""
        return self._engine.successes()

    def get_stats(self) -> dict[str, Any]:
        """name, state, failure_count, total_calls, failure_rate, avg_latency_s, retry_after_s, and more."""
        return self._engine.stats(str(self.name)).as_dict()

    async def get_stats_async(self) -> dict[str, Any]:
        """As `get_stats`, for asyncio."""
        return (await self._engine.stats_async(str(self.name))).as_dict()

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether an error says that the endpoint is ill."""
        if not isinstance(exception, Exception) or type(exception).__name__ in LOCAL_ORIGIN:
            return False
        for exclusion in self.excluded_exceptions:
            if isinstance(exclusion, type):
                if isinstance(exception, exclusion):
                    return False
            elif exclusion(exception):
                return False
        return True

    # What an operator may do.

    def open(self, reason: str = "opened by hand") -> bool:
        """Refuse calls for the usual open time, then probe."""
        self._operate("open", reason)
        return False

    def half_open(self, reason: str = "half-opened by hand") -> None:
        """Probe now."""
        self._operate("half-open", reason)

    def close(self, reason: str = "closed by hand") -> None:
        """Let every call through, and forget."""
        self._operate("closed", reason)

    def force_open(self, reason: str) -> None:
        """Refuse every call until `close`."""
        self._operate("forced-open", reason)

    def disable(self, reason: str, *, for_s: float | None = None) -> None:
        """Refuse every call for a time, then probe; without a time, until `close`."""
        self._operate("disabled", reason, for_s)

    async def open_async(self, reason: str = "opened by hand") -> None:
        """As `open`, for a breaker whose store is asyncio's."""
        await self._operate_async("open", reason)

    async def half_open_async(self, reason: str = "half-opened by hand") -> None:
        """As `half_open`."""
        await self._operate_async("half-open", reason)

    async def close_async(self, reason: str = "closed by hand") -> None:
        """As `close`."""
        await self._operate_async("closed", reason)

    async def force_open_async(self, reason: str) -> None:
        """As `force_open`."""
        await self._operate_async("forced-open", reason)

    async def disable_async(self, reason: str, *, for_s: float | None = None) -> None:
        """As `disable`."""
        await self._operate_async("disabled", reason, for_s)

    def saw(self, mode: Mode) -> None:
        """Tell the listeners when the state is not what it was."""
        if mode == self._seen:
            return
        old, self._seen = self._seen, mode
        for listener in self.listeners:
            listener.state_change(
                self, pybreaker.CircuitBreakerState(self, old), pybreaker.CircuitBreakerState(self, mode)
            )

    def began(self, func: Any, *args: Any, **kwargs: Any) -> None:
        """Tell the listeners that a call begins."""
        for listener in self._listeners:
            listener.before_call(self, func, *args, **kwargs)

    def learned(self, learn: Learn, error: BaseException | None = None) -> None:
        """Tell the listeners how a call ended; a neutral end is neither."""
        for listener in self._listeners:
            if learn == "ok":
                listener.success(self)
            elif learn == "failure":
                listener.failure(self, error)

    def _operate(self, mode: Mode, reason: str, for_s: float | None = None) -> None:
        self.saw(self._engine.operate(Operate(mode, reason, for_s)))

    async def _operate_async(self, mode: Mode, reason: str, for_s: float | None = None) -> None:
        self.saw(await self._engine.operate_async(Operate(mode, reason, for_s)))

    def _enter(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        entry = self._engine.enter()
        try:
            if entry.is_refused or entry.mode != self._seen:
                self._admitted(entry)
            if self._listeners:
                self.began(func, *args, **kwargs)
        except BaseException:  # a listener's: the probe goes back
            if not entry.is_refused:
                self._engine.leave(entry, "neutral", 0.0)
            raise
        return entry

    async def _enter_async(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        entry = await self._engine.enter_async()
        try:
            self._admitted(entry)
            if self._listeners:
                self.began(func, *args, **kwargs)
        except BaseException:
            if not entry.is_refused:
                await self._engine.leave_async(entry, "neutral", 0.0)
            raise
        return entry

    def _admitted(self, entry: Entry) -> None:
        if entry.mode != self._seen:
            self.saw(entry.mode)
        if entry.is_refused:
            raise circuit_open(
                str(self.name), mode=entry.mode, reason=entry.reason, retry_after_s=entry.retry_after_s
            )  # fmt: skip

    def _succeeded(self, entry: Entry, seconds: float) -> None:
        mode = self._engine.leave(entry, "ok", seconds)
        if self._listeners:
            self.learned("ok")
        if mode != self._seen:
            self.saw(mode)

    def _failed(self, entry: Entry, seconds: float, error: BaseException) -> None:
        learn: Learn = "failure" if self.is_system_error(error) else "neutral"
        mode = self._engine.leave(entry, learn, seconds)
        self.learned(learn, error)
        self.saw(mode)

    async def _ended_async(self, entry: Entry, seconds: float, error: BaseException | None) -> None:
        learn: Learn = "ok"
        if error is not None:
            learn = "failure" if self.is_system_error(error) else "neutral"
        mode = await to_its_end(self._engine.leave_async(entry, learn, seconds))
        self.learned(learn, error)
        self.saw(mode)

    async def _to_its_end(self, entry: Entry, result: Awaitable[Any]) -> Any:
        began_s = perf_counter()
        try:
            value = await result
        except BaseException as error:
            await self._ended_async(entry, perf_counter() - began_s, error)
            raise
        await self._ended_async(entry, perf_counter() - began_s, None)
        return value

    def _to_its_last_item(self, entry: Entry, items: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        began_s = perf_counter()
        try:
            value = yield from items
        except BaseException as error:
            self._failed(entry, perf_counter() - began_s, error)
            raise
        self._succeeded(entry, perf_counter() - began_s)
        return value


def _retuned(breaker: FleetBreaker, **changed: Any) -> None:
    breaker._knobs = replace(breaker._knobs, **changed)
    breaker._engine.tune(breaker._knobs)


def _knob(name: str, words: str) -> property:
    """One of pybreaker's settings as a view on the knobs."""
    return property(
        lambda breaker: getattr(cast(FleetBreaker, breaker)._knobs, name),
        lambda breaker, value: _retuned(breaker, **{name: value}),
        doc=words,
    )


FleetBreaker.fail_max = _knob("failures_in_a_row", "Failures in a row that open the breaker.")
FleetBreaker.reset_timeout = _knob("open_s", "Seconds before the first probe.")
FleetBreaker.success_threshold = _knob("successes_to_close", "Probes that must succeed.")
