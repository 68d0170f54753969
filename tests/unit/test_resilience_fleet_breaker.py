"""`FleetBreaker` keeps pybreaker's surface and none of its measured defects: each scenario runs against both."""

import asyncio
import threading
from abc import ABCMeta
from collections.abc import Callable
from typing import Any

import pybreaker
import pytest

from shared.errors import BreakerOpen
from shared.resilience.fleet_breaker import CircuitOpen, FleetBreaker
from shared.resilience.knobs import BreakerKnobs
from shared.resilience.memory_store import MemoryStore

Both = Callable[..., Any]


def stock(**more: Any) -> Any:
    """The library as it is, at the same thresholds."""
    return pybreaker.CircuitBreaker(fail_max=5, reset_timeout=30, success_threshold=2, **more)


def ours(**more: Any) -> FleetBreaker:
    return FleetBreaker("endpoint", **more)


def fail(error: BaseException) -> Any:
    raise error


def fails(breaker: Any, error: BaseException, times: int = 1) -> list[type[BaseException]]:
    """What came out of calls that raise."""
    raised = []
    for _ in range(times):
        try:
            breaker.call(fail, error)
        except BaseException as caught:
            raised.append(type(caught))
    return raised


class Listener(pybreaker.CircuitBreakerListener):  # type: ignore[misc]
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.heard.append("before")

    def success(self, cb: Any) -> None:
        self.heard.append("success")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.heard.append(repr(exc))

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.heard.append((old_state.name, new_state.name))


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Defects, each shown on the library first.


@pytest.mark.parametrize(("make", "together"), [(stock, False), (ours, True)])
def test_the_guarded_call_holds_no_lock(make: Both, together: bool) -> None:
    breaker, meeting, met = make(), threading.Barrier(4), []

    def meet() -> None:
        try:
            meeting.wait(timeout=0.5 if not together else 10.0)
            met.append(True)
        except threading.BrokenBarrierError:
            met.append(False)

    threads = [threading.Thread(target=breaker.call, args=(meet,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [together] * 4


@pytest.mark.parametrize(("make", "state"), [(stock, "closed"), (ours, "open")])
def test_four_failures_of_five_open_it(make: Both, state: str) -> None:
    breaker = make()
    for _ in range(20):
        fails(breaker, ConnectionError(), 4)
        if breaker.current_state == "closed":
            breaker.call(int)
    assert breaker.current_state == state


@pytest.mark.parametrize(("make", "state"), [(stock, "closed"), (ours, "open")])
def test_an_excluded_error_is_no_success(make: Both, state: str) -> None:
    breaker = make(exclude=[ValueError])
    fails(breaker, ConnectionError(), 4)
    fails(breaker, ValueError())
    fails(breaker, ConnectionError(), 1)
    assert breaker.current_state == state


@pytest.mark.parametrize(("make", "state"), [(stock, "closed"), (ours, "half-open")])
def test_an_excluded_error_does_not_close_a_half_open_breaker(make: Both, state: str) -> None:
    breaker = make(exclude=[ValueError])
    breaker.half_open()
    fails(breaker, ValueError(), 2)
    assert breaker.current_state == state


class Abstract(Exception, metaclass=ABCMeta):
    """A class that is no plain `type`."""


@pytest.mark.parametrize(("make", "state"), [(stock, "closed"), (ours, "open")])
def test_an_excluded_class_with_a_metaclass_excludes_only_itself(make: Both, state: str) -> None:
    breaker = make(exclude=[Abstract])
    fails(breaker, ConnectionError(), 5)
    assert breaker.current_state == state


@pytest.mark.parametrize(("make", "own"), [(stock, False), (ours, True)])
def test_the_call_that_trips_it_raises_its_own_error(make: Both, own: bool) -> None:
    raised = fails(make(), ConnectionError(), 5)
    assert raised[:4] == [ConnectionError] * 4
    assert raised[4] is (ConnectionError if own else pybreaker.CircuitBreakerError)


@pytest.mark.parametrize(("make", "own"), [(stock, False), (ours, True)])
@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt()])
def test_a_cancelled_call_is_neutral_and_stays_cancelled(make: Both, own: bool, error: BaseException) -> None:
    breaker = make()
    raised = fails(breaker, error, 5)
    assert (raised[-1] is type(error)) is own
    assert breaker.current_state == ("closed" if own else "open")


def test_a_workers_own_time_limit_is_neutral() -> None:
    class SoftTimeLimitExceeded(Exception):
        """As billiard's."""

    breaker = ours()
    fails(breaker, SoftTimeLimitExceeded(), 10)
    assert breaker.get_stats()["total_calls"] == 0


@pytest.mark.parametrize(("make", "state"), [(stock, "closed"), (ours, "open")])
async def test_an_async_function_is_judged_when_it_has_ended(make: Both, state: str) -> None:
    breaker = make()

    async def call() -> None:
        raise ConnectionError

    for _ in range(5):
        with pytest.raises(ConnectionError):
            await breaker.call(call)
    assert breaker.current_state == state


# The surface.


@pytest.mark.parametrize("store", ["none", "asyncio", "threads"])
async def test_operators_have_twins_for_asyncio_whatever_the_store(store: str) -> None:
    memory = MemoryStore()
    breaker = FleetBreaker(
        "e", async_store=memory if store == "asyncio" else None, store=memory if store == "threads" else None
    )
    for operate, state in [
        (breaker.open_async(), "open"),
        (breaker.half_open_async(), "half-open"),
        (breaker.force_open_async("maintenance"), "forced-open"),
        (breaker.disable_async("quota", for_s=60.0), "disabled"),
        (breaker.close_async(), "closed"),
    ]:
        await operate
        assert (await breaker.get_stats_async())["state"] == state
        assert breaker.current_state == {"forced-open": "open", "disabled": "open"}.get(state, state)


def test_names_numbers_and_exclusions_are_pybreakers() -> None:
    breaker = ours(exclude=[ValueError, lambda error: "quota" in str(error)])
    assert isinstance(breaker, pybreaker.CircuitBreaker)
    assert (breaker.name, breaker.fail_max, breaker.reset_timeout, breaker.success_threshold) == ("endpoint", 5, 30, 2)
    assert not breaker.is_system_error(ValueError()) and not breaker.is_system_error(OSError("quota"))
    breaker.add_excluded_exception(KeyError)
    assert not breaker.is_system_error(KeyError()) and breaker.is_system_error(OSError())
    breaker.fail_max, breaker.reset_timeout = 2, 7.0
    fails(breaker, OSError(), 2)
    with pytest.raises(pybreaker.CircuitBreakerError) as caught:
        breaker.call(int)
    assert isinstance(caught.value, BreakerOpen) and 6 < (caught.value.retry_after_s or 0) < 8
    assert breaker.fail_counter == 2 and breaker.state.name == pybreaker.STATE_OPEN


def test_listeners_hear_calls_failures_and_changes_of_state() -> None:
    listener, clock = Listener(), Clock()
    breaker = FleetBreaker("e", knobs=BreakerKnobs(failures_in_a_row=1, jitter=0), listeners=[listener], clock=clock)
    breaker.call(int)
    fails(breaker, OSError("x"))
    fails(breaker, OSError("refused"))
    clock.now += 30
    breaker.call(int)
    breaker.call(int)
    assert listener.heard == [
        *("before", "success", "before", "OSError('x')", ("closed", "open"), ("open", "half-open")),
        *("before", "success", "before", "success", ("half-open", "closed")),
    ]


def test_a_listener_that_raises_keeps_no_probe() -> None:
    class Refusing(pybreaker.CircuitBreakerListener):  # type: ignore[misc]
        def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            raise pybreaker.CircuitBreakerError("not now")

    refusing = Refusing()
    breaker = ours(listeners=[refusing])
    breaker.half_open()
    for _ in range(10):
        with pytest.raises(pybreaker.CircuitBreakerError, match="not now"):
            breaker.call(int)
    breaker.remove_listener(refusing)
    assert breaker.call(int) == 0


@pytest.mark.parametrize("how", ["call", "calling", "decorator", "decorator()", "generator"])
def test_every_way_to_guard_a_call_counts(how: str) -> None:
    breaker = ours()

    def generator() -> Any:
        yield 1
        raise OSError

    def guarded() -> None:
        if how == "calling":
            with breaker.calling():
                raise OSError
        elif how == "call":
            breaker.call(fail, OSError())
        elif how == "generator":
            list(breaker.call(generator))
        else:
            (breaker(fail) if how == "decorator" else breaker()(fail))(OSError())

    for _ in range(5):
        with pytest.raises(OSError):
            guarded()
    with pytest.raises(CircuitOpen):
        breaker.call(int)


@pytest.mark.parametrize("how", ["call", "call_async", "calling", "acalling", "decorator", "awaitable"])
@pytest.mark.parametrize("store", [None, "memory"])
async def test_every_way_to_guard_an_async_call_counts(how: str, store: str | None) -> None:
    memory = MemoryStore() if store else None
    breaker = ours(store=memory, async_store=memory)

    async def call() -> None:
        await asyncio.sleep(0)
        raise OSError

    async def guarded() -> None:
        if how == "calling":
            with breaker.calling():
                await call()
        elif how == "acalling":
            async with breaker.acalling():
                await call()
        elif how == "decorator":
            await breaker(call)()
        elif how == "awaitable":
            await breaker.call(lambda: call())
        else:
            await getattr(breaker, how)(call)

    for _ in range(5):
        with pytest.raises(OSError):
            await guarded()
    with pytest.raises(CircuitOpen):
        await breaker.call_async(call)
    assert (await breaker.get_stats_async())["failure_count"] == 5


async def test_a_probe_that_is_cancelled_returns_its_lease() -> None:
    breaker = ours()
    breaker.half_open()
    for _ in range(7):
        call = asyncio.create_task(breaker.call_async(asyncio.sleep, 60))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert breaker.get_stats()["probes"] == 0


def test_stats_are_those_that_were_promised() -> None:
    breaker = ours()
    breaker.call(int)
    fails(breaker, OSError())
    stats = breaker.get_stats()
    promised = ["name", "state", "failure_count", "total_calls", "failure_rate", "avg_latency_s", "retry_after_s"]
    assert list(stats)[:7] == promised
    assert [stats[name] for name in promised if name != "avg_latency_s"] == ["endpoint", "closed", 1, 2, 0.5, 0.0]


def test_operators_open_disable_and_close() -> None:
    clock = Clock()
    breaker = ours(clock=clock)
    breaker.force_open("maintenance")
    clock.now += 1e9
    with pytest.raises(CircuitOpen, match=r"forced-open: maintenance\); until an operator closes it"):
        breaker.call(int)
    assert breaker.current_state == pybreaker.STATE_OPEN and breaker.get_stats()["retry_after_s"] is None
    breaker.close()
    assert breaker.call(int) == 0
    breaker.disable("no money", for_s=60)
    with pytest.raises(CircuitOpen, match="disabled: no money"):
        breaker.call(int)
    clock.now += 61
    breaker.call(int)
    assert breaker.success_counter == 1
    breaker.open()
    with pytest.raises(CircuitOpen, match="opened by hand"):
        breaker.call(int)


def test_threads_cannot_use_a_store_of_asyncio() -> None:
    with pytest.raises(RuntimeError, match="for asyncio only: await its twins"):
        ours(async_store=MemoryStore()).call(int)


def test_many_threads_lose_no_count() -> None:
    breaker = ours(knobs=BreakerKnobs(window=4000, min_calls=4000, failures_in_a_row=4000))

    def work() -> None:
        for number in range(240):
            if number % 4:
                breaker.call(int)
            else:
                fails(breaker, OSError())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = breaker.get_stats()
    assert (stats["total_calls"], stats["failure_rate"], stats["state"]) == (1920, 0.25, "closed")
