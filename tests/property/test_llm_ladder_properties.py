"""What holds for every vector of capabilities, every chain of failures and every question."""

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from shared.errors import Misconfigured
from shared.llm.answer_key import Asker, answer_key
from shared.llm.config_file import read_text
from shared.llm.ladder import LEVELS, Capabilities, Passed, decide, worth_waiting
from shared.llm.messages import ChatRequest, Message
from shared.llm.recovery import Standing, observed, share

vectors = some.builds(
    Capabilities,
    llm=some.sampled_from(["first", "backup", "none"]),
    rag=some.booleans(),
    tools=some.booleans(),
    cache=some.booleans(),
)
passes = some.lists(
    some.builds(
        Passed,
        model=some.sampled_from(["a", "b", "c"]),
        way=some.sampled_from(["down", "busy", "budget", "unfit", "returning"]),
        reason=some.text(max_size=10),
        retry_after_s=some.none() | some.floats(0, 1000),
    ),
    max_size=5,
)
seconds = some.floats(0, 1000)
words = some.text(max_size=20)


@given(vectors, some.booleans())
def test_losing_a_capability_never_improves_the_level(vector: Capabilities, must_act: bool) -> None:
    now = LEVELS.index(decide(vector, must_act=must_act).level)
    for less in (replace(vector, rag=False), replace(vector, tools=False), replace(vector, llm="none")):
        if less.llm == "none" and less.cache and not must_act:
            continue  # a cached answer was made with everything: L2 is better than plain conversation
        assert LEVELS.index(decide(less, must_act=must_act).level) >= now


@given(vectors, some.booleans(), some.lists(words, max_size=3))
def test_every_degradation_has_a_reason_and_only_a_model_answers_without_one(
    vector: Capabilities, must_act: bool, reasons: list[str]
) -> None:
    decision = decide(vector, must_act=must_act, reasons=reasons)
    assert decision.reasons[: len(reasons)] == tuple(reasons)
    if decision.level in ("L2", "L3", "L4"):
        assert len(decision.reasons) > len(reasons)


@given(vectors)
def test_a_task_that_must_act_acts_or_says_that_it_could_not(vector: Capabilities) -> None:
    decision = decide(vector, must_act=True)
    can_act = vector.llm != "none" and vector.tools
    assert (decision.action in ("answer", "answer_plainly")) == can_act
    assert (decision.action == "say_could_not_act") == (not can_act)


@given(passes, some.sampled_from(["degrade", "wait"]), seconds, some.none() | seconds)
@example([Passed(model="a", way="busy", reason="", retry_after_s=0.0)], "degrade", 0.0, 1.0)
def test_a_wait_always_ends_before_the_deadline_and_is_never_nothing(
    passed: list[Passed], when_down: Any, patience_s: float, left_s: float | None
) -> None:
    wait = worth_waiting(passed, when_down=when_down, patience_s=patience_s, left_s=left_s, usual_wait_s=30.0)
    if wait is not None:
        assert wait.retry_after_s >= 1.0 and wait.reason
        assert any(one.way in ("busy", "down") for one in passed)
        assert left_s is None or wait.retry_after_s < left_s


@given(some.lists(some.tuples(some.sampled_from(["answered", "away"]), some.floats(0, 5)), max_size=30), seconds)
def test_a_share_is_always_a_share_and_grows_with_time(events: list[tuple[Any, float]], later_s: float) -> None:
    standing, now = Standing(), 0.0
    for event, wait_s in events:
        now += wait_s
        standing = observed(standing, event, now=now, recover_over_s=10.0)
    parts = [share(standing, now=at, recover_over_s=10.0, first_share=0.1).value for at in (now, now + later_s)]
    assert 0.1 <= parts[0] <= parts[1] <= 1.0


@given(some.lists(words, min_size=8, max_size=8), some.lists(words, min_size=8, max_size=8))
def test_two_keys_are_equal_only_for_the_same_asker_and_question(one: list[str], other: list[str]) -> None:
    def key(parts: list[str]) -> str:
        tenant, agent, version, scope, user, corpus, locale, text = parts
        asker = Asker(
            tenant=tenant, agent=agent, prompt_version=version, scope=scope, user=user, corpus=corpus, locale=locale
        )
        return answer_key(b"secret", ChatRequest((Message("user", text),)), asker=asker, family="f")

    same = one[:7] == other[:7] and unicodedata.normalize("NFC", one[7]) == unicodedata.normalize("NFC", other[7])
    assert (key(one) == key(other)) == same


@given(some.text(max_size=200))
def test_no_text_makes_the_reader_of_the_file_stumble(text: str) -> None:
    with pytest.raises(Misconfigured, match=r"^llm\.yaml, line \d+"):
        read_text(text, source="llm.yaml", environment={})
