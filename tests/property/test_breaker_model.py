"""The breaker against a model that is as plain as it can be: lists, counted anew for every question."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.resilience.circuit import Ask, Circuit, Mode, Operate, Record, all_went_well, is_well, step
from shared.resilience.knobs import BreakerKnobs
from shared.resilience.outcome import Learn

KNOBS = BreakerKnobs(
    failures_in_a_row=3, window=10, min_calls=5, slow_call_s=5.0, open_s=10.0, open_max_s=35.0, jitter=0.1,
    probe_lease_s=7.0, last_probe_every_s=2.0,
)  # fmt: skip


@dataclass
class Call:
    """A call that the model let through."""

    era: int
    began: float
    is_leased: bool = False
    is_over: bool = False


@dataclass
class Model:
    """What the breaker is meant to be."""

    mode: Mode = "closed"
    era: int = 0
    outcomes: list[tuple[Learn, bool]] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    successes: int = 0
    failed_rounds: int = 0
    until: float = 0.0
    last_probe: float = 0.0

    def ask(self, permit: str, now: float, *, is_last: bool) -> bool:
        if self.mode == "forced-open":
            return False
        may_try_last = is_last and now - self.last_probe >= KNOBS.last_probe_every_s
        if self.mode in ("open", "disabled"):
            if now < self.until:
                if self.mode == "open" and may_try_last:
                    return self._let(permit, now)
                return False
            if not self._room(now, fresh=True) and not may_try_last:
                return False
            self._turn("half-open")
        if self.mode == "half-open":
            if self._room(now):
                return self._let(permit, now, is_leased=True)
            return self._let(permit, now) if may_try_last else False
        self.calls[permit] = Call(self.era, now)
        return True

    def end(self, permit: str, learn: Learn, seconds: float, now: float, jitter: float) -> None:
        call = self.calls[permit]
        if call.era != self.era or self.mode in ("forced-open", "disabled"):
            return
        call.is_over = True
        if learn == "neutral":
            return
        is_slow = seconds >= KNOBS.slow_call_s
        if self.mode == "closed":
            self.outcomes = [*self.outcomes, (learn, is_slow)][-KNOBS.window :]
            if self._is_ill():
                self.failed_rounds = 0
                self._open(now, jitter)
        elif learn == "failure" or is_slow:
            if self.mode == "half-open":
                self.failed_rounds += 1
                self._open(now, jitter)
        else:
            successes = self.successes + 1
            if successes == KNOBS.successes_to_close:
                self._turn("closed")
                self.outcomes, self.failed_rounds, self.last_probe = [], 0, 0.0
            else:
                if self.mode == "open":
                    self._turn("half-open")
                self.successes = successes

    def operate(self, mode: Mode, for_s: float | None, now: float) -> None:
        self._turn(mode)
        self.failed_rounds = 0
        self.until = now + (KNOBS.open_s if for_s is None else for_s)
        if mode == "disabled" and for_s is None:
            self.until = float("inf")
        if mode == "closed":
            self.outcomes, self.last_probe = [], 0.0

    def _room(self, now: float, *, fresh: bool = False) -> bool:
        leased = 0 if fresh else sum(
            call.is_leased and not call.is_over and call.era == self.era and now < call.began + KNOBS.probe_lease_s
            for call in self.calls.values()
        )  # fmt: skip
        return leased + (0 if fresh else self.successes) < KNOBS.probes

    def _let(self, permit: str, now: float, *, is_leased: bool = False) -> bool:
        self.calls[permit] = Call(self.era, now, is_leased)
        self.last_probe = now
        return True

    def _is_ill(self) -> bool:
        if [learn for learn, _ in self.outcomes[-KNOBS.failures_in_a_row :]] == ["failure"] * KNOBS.failures_in_a_row:
            return True
        count = len(self.outcomes)
        failed = sum(learn == "failure" for learn, _ in self.outcomes)
        slow = sum(is_slow for _, is_slow in self.outcomes)
        return count >= KNOBS.min_calls and (failed / count >= KNOBS.failure_rate or slow / count >= KNOBS.slow_rate)

    def _open(self, now: float, jitter: float) -> None:
        self._turn("open")
        open_s = min(KNOBS.open_max_s, KNOBS.open_s * KNOBS.open_factor**self.failed_rounds)
        self.until = now + open_s * (1 + KNOBS.jitter * jitter)

    def _turn(self, mode: Mode) -> None:
        self.mode, self.era, self.successes = mode, self.era + 1, 0


MODES: list[Mode] = ["closed", "open", "half-open", "forced-open", "disabled"]
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.booleans()),
        st.tuples(st.just("ask"), st.just(False)),
        st.tuples(
            st.just("end"),
            st.integers(0, 5),
            st.sampled_from(["ok", "failure", "failure", "neutral"]),
            st.sampled_from([0.1, 1.0, 5.0, 9.0]),
            st.sampled_from([-1.0, 0.0, 0.5]),
        ),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 2.0, 7.0, 10.0, 12.0, 40.0])),
        st.tuples(st.just("operate"), st.sampled_from(MODES), st.sampled_from([None, 5.0])),
    ),
    max_size=120,
)


@settings(max_examples=400)
@given(EVENTS)
def test_the_machine_does_what_the_model_does(events: list[Any]) -> None:
    circuit, model, now, number = Circuit(), Model(), 1000.0, 0
    flying: list[tuple[str, int]] = []
    known, later = circuit, list[int]()
    for event in events:
        if event[0] == "ask":
            number += 1
            permit = str(number)
            circuit, decision = step(circuit, Ask(permit, event[1]), now, KNOBS)
            assert (decision.action != "reject") == model.ask(permit, now, is_last=event[1])
            if decision.action != "reject":
                flying.append((permit, circuit.generation))
        elif event[0] == "end" and flying:
            permit, generation = flying.pop(event[1] % len(flying))
            if event[2] == "ok" and event[3] < KNOBS.slow_call_s and is_well(circuit, generation):
                later.append(int(event[3] * 1_000_000))
            else:
                later.clear()
            circuit, _ = step(circuit, Record(permit, generation, *event[2:]), now, KNOBS)
            model.end(permit, event[2], event[3], now, event[4])
        elif event[0] == "wait":
            now += event[1]
        elif event[0] == "operate":
            circuit, _ = step(circuit, Operate(event[1], "told to", event[2]), now, KNOBS)
            model.operate(event[1], event[2], now)
        if not later or event[0] == "operate":
            known = circuit
            later.clear()
        assert not later or all_went_well(known, later, KNOBS) == circuit, "told later is told"
        assert circuit.mode == model.mode
        if circuit.mode == "open":
            assert circuit.until_s == pytest.approx(model.until)
        if circuit.mode in ("closed", "open"):
            assert len(circuit.window) == len(model.outcomes)
            assert circuit.failures == sum(learn == "failure" for learn, _ in model.outcomes)
        assert len(circuit.leases) + circuit.successes <= KNOBS.probes


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["ok", "failure"]), st.floats(0, 200, allow_nan=False)), max_size=150))
def test_the_sums_are_those_of_the_window(calls: list[tuple[Learn, float]]) -> None:
    knobs = BreakerKnobs(failures_in_a_row=10_000, failure_rate=1.0, slow_rate=1.0, min_calls=100)
    circuit = Circuit()
    for learn, seconds in calls:
        circuit, _ = step(circuit, Record("", None, learn, seconds), 0.0, knobs)
        if circuit.mode != "closed":
            return
        assert len(circuit.window) <= 100
        assert circuit.failures == sum(entry & 1 for entry in circuit.window)
        assert circuit.slow == sum(entry >> 1 & 1 for entry in circuit.window)
        assert circuit.micros == sum(entry >> 2 for entry in circuit.window)


@given(EVENTS)
def test_a_step_never_touches_the_state_it_was_given(events: list[Any]) -> None:
    circuit, now = Circuit(), 0.0
    for event in events:
        before = tuple(circuit)
        if event[0] == "ask":
            after, _ = step(circuit, Ask("p", event[1]), now, KNOBS)
        elif event[0] == "end":
            after, _ = step(circuit, Record("p", None, *event[2:]), now, KNOBS)
        elif event[0] == "wait":
            now += event[1]
            continue
        else:
            after, _ = step(circuit, Operate(event[1], "", event[2]), now, KNOBS)
        assert tuple(circuit) == before
        circuit = after
