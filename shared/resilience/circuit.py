"""The breaker's state machine: pure, so that memory, Redis and the tests can be held against one another.

          failures                    open time over                 2 successes
 closed ───────────▶ open ◀──────────────────────────── half-open ────────────▶ closed
                       └───────────────────────────────▶   │  ▲
                       ◀──── a probe fails: open for twice as long

`forced-open` (an operator's) and `disabled` (for a time, or until an operator) refuse every call. Every change of state
starts a new generation, and what calls of an older one report is dropped: a late failure cannot reopen a healed key.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from shared.resilience.knobs import BreakerKnobs
from shared.resilience.outcome import Learn

Mode = Literal["closed", "open", "half-open", "forced-open", "disabled"]
Action = Literal["admit", "probe", "reject", "record", "drop", "change"]
FOREVER = float("inf")
BUSY_S = 1.0
"""When to ask again while all probes are under way: one of them may come back any moment."""


class Circuit(NamedTuple):
    """What is known of one key. A NamedTuple: built three times as fast as a frozen dataclass, once a call."""

    mode: Mode = "closed"
    generation: int = 0
    window: tuple[int, ...] = ()
    """The last calls, oldest first: microseconds << 2 | slow << 1 | failed."""
    failures: int = 0
    slow: int = 0
    micros: int = 0
    """Sums over the window."""
    in_a_row: int = 0
    until_s: float = 0.0
    """When open or disabled ends."""
    rounds: int = 0
    """Rounds of probes that failed since the key was last well."""
    leases: tuple[tuple[str, float], ...] = ()
    """Probes under way and when each is given up."""
    successes: int = 0
    last_probe_s: float = 0.0
    reason: str = ""


class Ask(NamedTuple):
    """May a call be sent?"""

    permit: str
    is_last: bool = False


class Record(NamedTuple):
    """A call has ended."""

    permit: str
    generation: int | None
    """The one it was admitted in; None: it was admitted elsewhere, take it for the present one."""
    learn: Learn
    seconds: float
    jitter: float = 0.0
    """Uniform in [-1, 1], from the caller: a pure function has no dice."""


class Operate(NamedTuple):
    """An operator or an account decides."""

    mode: Mode
    reason: str
    for_s: float | None = None
    """How long, for `open` and `disabled`; None: the usual time for `open`, until told otherwise for `disabled`."""


Event = Ask | Record | Operate


class Decision(NamedTuple):
    """What follows, and why, as a sentence."""

    action: Action
    reason: str
    retry_after_s: float | None = None


ADMIT = Decision("admit", "closed")
RECORD = Decision("record", "recorded")
DROP = Decision("drop", "from an older generation")
LAST = Decision("probe", "the last endpoint is asked now and then")
NEUTRAL = Decision("record", "says nothing about the endpoint")


def step(circuit: Circuit, event: Event, now: float, knobs: BreakerKnobs) -> tuple[Circuit, Decision]:
    """The state after an event, and the decision.

    Args:
        now: Seconds on any clock that all callers of this circuit share.
    """
    if type(event) is Ask:
        return _ask(circuit, event, now, knobs)
    if type(event) is Record:
        return _record(circuit, event, now, knobs)
    return _operate(circuit, event, now, knobs)  # type: ignore[arg-type]


def retry_after_s(mode: Mode, until_s: float, now: float) -> float | None:
    """Seconds until the next call may be let through; None: not before an operator says so."""
    if mode in ("open", "disabled", "forced-open"):
        return None if until_s == FOREVER else max(0.0, until_s - now)
    return 0.0


def _ask(circuit: Circuit, ask: Ask, now: float, knobs: BreakerKnobs) -> tuple[Circuit, Decision]:
    mode = circuit.mode
    if mode == "closed":
        return circuit, ADMIT
    if mode == "forced-open":
        return circuit, Decision("reject", circuit.reason)
    if mode in ("open", "disabled"):
        if now < circuit.until_s:
            if mode == "open" and _may_try_the_last(circuit, ask, now, knobs):
                return circuit._replace(last_probe_s=now), LAST
            return circuit, Decision("reject", circuit.reason, retry_after_s(mode, circuit.until_s, now))
        circuit = _turned(circuit, "half-open", "the open time is over")
    leases = tuple(lease for lease in circuit.leases if lease[1] > now)
    if len(leases) + circuit.successes < knobs.probes:
        leases = (*leases, (ask.permit, now + knobs.probe_lease_s))
        return circuit._replace(leases=leases, last_probe_s=now), Decision("probe", "half-open: a probe")
    if _may_try_the_last(circuit, ask, now, knobs):
        return circuit._replace(leases=leases, last_probe_s=now), LAST
    wait_s = min([BUSY_S, *(expires - now for _, expires in leases)])
    return circuit._replace(leases=leases), Decision("reject", "half-open: all probes are under way", wait_s)


def _may_try_the_last(circuit: Circuit, ask: Ask, now: float, knobs: BreakerKnobs) -> bool:
    return ask.is_last and now - circuit.last_probe_s >= knobs.last_probe_every_s


def _record(circuit: Circuit, record: Record, now: float, knobs: BreakerKnobs) -> tuple[Circuit, Decision]:
    if record.generation is not None and record.generation != circuit.generation:
        return circuit, DROP
    mode = circuit.mode
    if mode == "closed":
        return (circuit, NEUTRAL) if record.learn == "neutral" else _learned(circuit, record, now, knobs)
    if mode in ("forced-open", "disabled"):
        return circuit, DROP
    leases = tuple(lease for lease in circuit.leases if lease[0] != record.permit)
    circuit = circuit._replace(leases=leases)
    if record.learn == "neutral":
        return circuit, NEUTRAL
    is_well = record.learn == "ok" and record.seconds < knobs.slow_call_s
    if not is_well:
        if mode == "open":  # the last endpoint's probe: the open time stays as it is
            return circuit, RECORD
        reason = "a probe failed" if record.learn == "failure" else "a probe was slow"
        return _opened(circuit, reason, now, knobs, record.jitter, rounds=circuit.rounds + 1)
    successes = circuit.successes + 1
    if successes >= knobs.successes_to_close:
        reason = f"{successes} probes succeeded"
        return Circuit(generation=circuit.generation + 1, reason=reason), Decision("change", reason)
    if mode == "open":
        turned = _turned(circuit, "half-open", "the last endpoint answered")._replace(successes=successes)
        return turned, Decision("change", turned.reason)
    return circuit._replace(successes=successes), RECORD


def is_well(circuit: Circuit, generation: int) -> bool:
    """Whether a fast success of this generation changes nothing but the window: `all_went_well` may be told later."""
    return not circuit.failures and not circuit.slow and circuit.generation == generation and circuit.mode == "closed"


def all_went_well(circuit: Circuit, micros: Sequence[int], knobs: BreakerKnobs) -> Circuit:
    """What `step` makes of fast successes in turn, while nothing in the window speaks against the key.

    Args:
        micros: Microseconds of each.
    """
    window = (*circuit.window, *(took << 2 for took in micros))
    gone = len(window) - max(knobs.window, len(circuit.window))
    left = sum(one >> 2 for one in window[:gone]) if gone > 0 else 0
    return circuit._replace(
        window=window[max(0, gone) :], micros=circuit.micros + sum(micros) - left, in_a_row=0
    )  # fmt: skip


def _learned(circuit: Circuit, record: Record, now: float, knobs: BreakerKnobs) -> tuple[Circuit, Decision]:
    """One more call in the window of a closed breaker."""
    failed = record.learn == "failure"
    is_slow = record.seconds >= knobs.slow_call_s
    entry = int(record.seconds * 1_000_000) << 2 | is_slow << 1 | failed
    window = circuit.window
    failures, slow, micros = circuit.failures + failed, circuit.slow + is_slow, circuit.micros + (entry >> 2)
    if len(window) >= knobs.window:
        gone = window[0]
        failures, slow, micros = failures - (gone & 1), slow - (gone >> 1 & 1), micros - (gone >> 2)
        window = (*window[1:], entry)
    else:
        window = (*window, entry)
    in_a_row = circuit.in_a_row + 1 if failed else 0
    sums = (failures, slow, micros, in_a_row)
    learned = Circuit("closed", circuit.generation, window, *sums, 0.0, 0, (), 0, circuit.last_probe_s, circuit.reason)
    if not failures and not slow:
        return learned, RECORD
    reason = _sick(learned, knobs)
    if not reason:
        return learned, RECORD
    return _opened(learned, reason, now, knobs, record.jitter, rounds=0)


def _sick(circuit: Circuit, knobs: BreakerKnobs) -> str:
    """Why a closed breaker must open, or nothing."""
    calls = len(circuit.window)
    if circuit.in_a_row >= knobs.failures_in_a_row:
        return f"{circuit.in_a_row} failures in a row"
    if calls < knobs.min_calls:
        return ""
    if circuit.failures >= knobs.failure_rate * calls:
        return f"{circuit.failures} of the last {calls} calls failed"
    if circuit.slow >= knobs.slow_rate * calls:
        return f"{circuit.slow} of the last {calls} calls were slow"
    return ""


def _opened(
    circuit: Circuit, reason: str, now: float, knobs: BreakerKnobs, jitter: float, *, rounds: int
) -> tuple[Circuit, Decision]:
    open_s = min(knobs.open_max_s, knobs.open_s * knobs.open_factor ** min(rounds, 64)) * (1 + knobs.jitter * jitter)
    opened = _turned(circuit, "open", reason)._replace(until_s=now + open_s, rounds=rounds)
    return opened, Decision("change", reason, open_s)


def _turned(circuit: Circuit, mode: Mode, reason: str) -> Circuit:
    """Another state, a new generation; the evidence stays to be looked at until the breaker closes."""
    return circuit._replace(mode=mode, generation=circuit.generation + 1, leases=(), successes=0, reason=reason)


def _operate(circuit: Circuit, operate: Operate, now: float, knobs: BreakerKnobs) -> tuple[Circuit, Decision]:
    if operate.mode == "closed":
        return Circuit(generation=circuit.generation + 1, reason=operate.reason), Decision("change", operate.reason)
    until_s = 0.0
    if operate.mode == "forced-open" or (operate.mode == "disabled" and operate.for_s is None):
        until_s = FOREVER
    elif operate.mode in ("open", "disabled"):
        until_s = now + (knobs.open_s if operate.for_s is None else operate.for_s)
    turned = _turned(circuit, operate.mode, operate.reason)._replace(until_s=until_s, rounds=0)
    return turned, Decision("change", operate.reason, retry_after_s(turned.mode, turned.until_s, now))
