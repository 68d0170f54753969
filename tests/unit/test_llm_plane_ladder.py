"""The ladder decided purely: every vector of capabilities has a level, an action and its reasons."""

from dataclasses import replace

import pytest

from shared.llm.ladder import LEVELS, Capabilities, Level, Passed, decide, spread, worst, worth_waiting
from shared.llm.recovery import Share, Standing, observed, share

DOWN = Passed(model="big", way="down", reason="big: it hung up", retry_after_s=20.0)
BUSY = Passed(model="small", way="busy", reason="small: slow down", retry_after_s=12.0)
UNFIT = Passed(model="tiny", way="unfit", reason="tiny: too long")


@pytest.mark.parametrize(
    ("capabilities", "level", "action"),
    [
        (Capabilities(), "L0", "answer"),
        (Capabilities(llm="backup"), "L1", "answer"),
        (Capabilities(llm="none", cache=True), "L2", "answer_from_cache"),
        (Capabilities(rag=False), "L3", "answer_plainly"),
        (Capabilities(tools=False), "L3", "answer_plainly"),
        (Capabilities(llm="backup", rag=False), "L3", "answer_plainly"),
        (Capabilities(llm="none"), "L4", "say_sorry"),
        (Capabilities(llm="none", rag=False, tools=False), "L4", "say_sorry"),
        (Capabilities(llm="none", rag=False, tools=False, cache=True), "L2", "answer_from_cache"),
    ],
)
def test_a_vector_has_its_level(capabilities: Capabilities, level: str, action: str) -> None:
    decision = decide(capabilities)
    assert (decision.level, decision.action) == (level, action)


def test_backup_and_missing_retrieval_hold_at_once_and_both_are_told() -> None:
    decision = decide(Capabilities(llm="backup", rag=False), reasons=["big: it hung up"])
    assert decision.level == "L3"
    assert decision.reasons == ("big: it hung up", "retrieval is unavailable: plain conversation")


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("capabilities", [{"llm": "none"}, {"tools": False}, {"llm": "backup", "tools": False}])
def test_a_task_that_must_act_never_becomes_chat(capabilities: dict[str, bool], cache: bool) -> None:
    decision = decide(Capabilities(**capabilities, cache=cache), must_act=True)  # type: ignore[arg-type]
    assert decision.action == "say_could_not_act"
    assert "must act" in decision.reasons[-1]


@pytest.mark.parametrize("llm", ["first", "backup"])
def test_a_task_that_must_act_acts_through_a_backup_model_and_without_retrieval(llm: str) -> None:
    assert decide(Capabilities(llm=llm, rag=False), must_act=True).action == "answer_plainly"  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [("L0", "L3", "L1"), ("L3",), ("L1", "L3")])
def test_the_worst_level_is_the_one_that_counts(levels: tuple[Level, ...]) -> None:
    assert worst(*levels) == "L3"
    assert worst() == "L0" and list(LEVELS) == sorted(LEVELS)


def waiting(
    *passed: Passed, when_down: str = "degrade", patience_s: float = 60.0, left_s: float | None = None
) -> float | None:
    found = worth_waiting(passed, when_down=when_down, patience_s=patience_s, left_s=left_s, usual_wait_s=30.0)  # type: ignore[arg-type]
    return None if found is None else found.retry_after_s


def test_busy_models_are_waited_for_and_dead_ones_are_not() -> None:
    assert waiting(BUSY) == 12.0
    assert waiting(DOWN, BUSY) == 12.0
    assert waiting(DOWN) is None
    assert waiting(UNFIT) is None and waiting() is None


def test_nobody_waits_longer_than_the_agents_patience_or_the_deadline() -> None:
    assert waiting(BUSY, patience_s=10.0) is None
    assert waiting(BUSY, left_s=12.0) is None
    assert waiting(BUSY, left_s=12.5) == 12.0


def test_a_queue_of_exactly_the_agents_patience_is_waited_for_whatever_rounding_made_of_it() -> None:
    assert waiting(replace(BUSY, retry_after_s=60.000_000_3)) == 60.000_000_3
    assert waiting(replace(BUSY, retry_after_s=61.0)) is None


def test_a_wait_is_stretched_by_chance_within_the_deadline() -> None:
    waits = [spread(50.0, left_s=None, draw=lambda one=one: one) for one in (0.0, 0.5, 1.0)]  # type: ignore[misc]
    assert waits == pytest.approx([50.0, 52.5, 55.0])
    assert spread(50.0, left_s=54.0, draw=lambda: 1.0) == 50.0


def test_models_that_are_down_are_not_asked_for_every_second_however_soon_their_breakers_say() -> None:
    probing = replace(DOWN, retry_after_s=0.4)
    assert waiting(probing, when_down="wait") == 10.0
    assert waiting(probing, DOWN, when_down="wait") == 10.0


def test_an_agent_that_would_rather_wait_is_put_back_until_a_model_is_due() -> None:
    assert waiting(DOWN, when_down="wait") == 20.0
    unknown = Passed(model="x", way="down", reason="x", retry_after_s=None)
    assert waiting(unknown, when_down="wait") == 30.0
    assert waiting(unknown, DOWN, when_down="wait") == 20.0
    assert waiting(DOWN, when_down="wait", left_s=19.0) is None
    assert waiting(UNFIT, when_down="wait") is None


def part(standing: Standing, now: float) -> Share:
    return share(standing, now=now, recover_over_s=10.0, first_share=0.1)


def after(*events: tuple[str, float]) -> Standing:
    standing = Standing()
    for event, now in events:
        standing = observed(standing, event, now=now, recover_over_s=10.0)  # type: ignore[arg-type]
    return standing


def test_a_model_that_was_never_away_gets_every_call() -> None:
    assert part(after(("answered", 1.0), ("answered", 2.0)), 2.0) == Share(1.0)


def test_a_model_that_is_away_is_left_to_its_breaker() -> None:
    assert part(after(("away", 1.0)), 5.0) == Share(1.0)


def test_a_model_that_returns_gets_its_calls_back_by_and_by() -> None:
    back = after(("away", 0.0), ("answered", 100.0))
    assert [round(part(back, now).value, 2) for now in (100.0, 105.0, 110.0, 200.0)] == [0.1, 0.55, 1.0, 1.0]
    assert part(back, 105.0).reason == "it is coming back and gets 55% of the calls"
    assert observed(back, "answered", now=110.0, recover_over_s=10.0) == Standing()


def test_a_model_that_falls_again_starts_over() -> None:
    again = after(("away", 0.0), ("answered", 100.0), ("away", 105.0), ("answered", 107.0))
    assert part(again, 107.0).value == 0.1


def test_recovery_without_hysteresis_is_immediate() -> None:
    back = observed(Standing(is_away=True), "answered", now=5.0, recover_over_s=0.0)
    assert back == Standing()
