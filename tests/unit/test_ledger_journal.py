"""The journal: a completed step is never called again, and what cannot be journaled is refused by name."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from shared.errors import BadInput, Fenced, LLMTimeout, StepChanged
from shared.ledger.journal import Journal, fingerprint
from tests.fakes.fake_ledger import FakeCommit

TASK = UUID(int=7)


class Work:
    """Counts its calls and gives the next result, or raises it."""

    def __init__(self, *results: Any) -> None:
        self.calls = 0
        self._results = results

    async def __call__(self) -> Any:
        self.calls += 1
        result = self._results[min(self.calls, len(self._results)) - 1]
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def commit() -> FakeCommit:
    return FakeCommit()


@pytest.fixture
def journal(commit: FakeCommit) -> Journal:
    return commit.journal(TASK)


async def run(journal: Journal, name: str, call: Callable[[], Awaitable[Any]], request: Any = None) -> Any:
    return await journal.step(name, kind="step", request=request, call=call)


async def test_a_step_is_written_before_it_happens_and_after(journal: Journal, commit: FakeCommit) -> None:
    async def call() -> str:
        assert commit.history == [("intent", "think", 0)]
        return "done"

    assert await run(journal, "think", call) == "done"
    assert commit.history == [("intent", "think", 0), ("result", "think", 0)]
    assert commit.steps["think", 0]["state"] == "done"
    assert (journal.executed, journal.replayed) == (1, 0)


async def test_a_completed_step_comes_back_and_is_not_called_again(journal: Journal, commit: FakeCommit) -> None:
    work = Work({"words": [1, None, "x"]})
    first = await run(journal, "think", work, {"q": 1})
    resumed = commit.journal(TASK, epoch=2)
    assert await run(resumed, "think", work, {"q": 1}) == first
    assert work.calls == 1
    assert (resumed.executed, resumed.replayed) == (0, 1)
    assert len(commit.history) == 2


@pytest.mark.parametrize("result", [None, False, 0, "", []])
async def test_a_completed_step_without_much_of_a_result_comes_back_too(
    journal: Journal, commit: FakeCommit, result: Any
) -> None:
    work = Work(result)
    await run(journal, "think", work)
    assert await run(commit.journal(TASK, epoch=2), "think", work) == result
    assert work.calls == 1


async def test_a_step_that_was_cut_off_before_its_result_is_called_again(journal: Journal, commit: FakeCommit) -> None:
    with pytest.raises(asyncio.CancelledError):
        await run(journal, "think", Work(asyncio.CancelledError()))
    assert commit.history == [("intent", "think", 0)]
    again = Work("now")
    assert await run(commit.journal(TASK, epoch=2), "think", again) == "now"
    assert again.calls == 1


async def test_a_resumed_step_that_asks_for_something_else_fails_and_is_not_called(
    journal: Journal, commit: FakeCommit
) -> None:
    await run(journal, "think", Work("x"), {"q": 1})
    work = Work("y")
    with pytest.raises(StepChanged, match="step 'think' #0 asks for something else than before") as caught:
        await run(commit.journal(TASK, epoch=2), "think", work, {"q": 2})
    assert caught.value.context == {"step": "think", "ordinal": 0}
    assert work.calls == 0


async def test_a_failure_of_the_fleets_own_is_an_outcome_that_the_next_attempt_sees_again(commit: FakeCommit) -> None:
    work = Work(LLMTimeout("too late", endpoint="e"), "second try")
    for attempt in (1, 2):
        one = commit.journal(TASK, epoch=attempt)
        with pytest.raises(LLMTimeout, match="too late") as caught:
            await run(one, "think", work)
        assert caught.value.context == {"endpoint": "e"}
        assert await run(one, "think", work) == "second try"
    assert work.calls == 2
    assert commit.steps["think", 0]["state"] == "failed"


async def test_any_other_failure_is_recorded_raised_and_tried_again_by_the_next_attempt(
    journal: Journal, commit: FakeCommit
) -> None:
    work = Work(ValueError("no\x00luck"), "second try")
    with pytest.raises(ValueError, match="no"):
        await run(journal, "think", work)
    assert commit.steps["think", 0]["result"] == {"error": "ValueError('no\\x00luck')"}
    nul = Work(LLMTimeout("no\x00luck"))
    with pytest.raises(LLMTimeout):
        await run(journal, "ask", nul)
    assert commit.steps["ask", 0]["result"] == {"error": "LLMTimeout"}
    assert await run(commit.journal(TASK, epoch=2), "think", work) == "second try"


@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_name_that_no_index_could_hold_is_refused_before_anything_happens(
    journal: Journal, commit: FakeCommit, name: str
) -> None:
    with pytest.raises(BadInput, match="a step's name must have 1 to 200 characters"):
        await run(journal, name, Work("x"))
    assert commit.history == []


async def test_steps_of_one_name_are_counted_and_those_of_another_are_not(journal: Journal, commit: FakeCommit) -> None:
    for name in ("a", "b", "a", "a"):
        await run(journal, name, Work(name))
    assert set(commit.steps) == {("a", 0), ("a", 1), ("a", 2), ("b", 0)}


async def test_a_failed_step_keeps_its_number_within_one_attempt(journal: Journal, commit: FakeCommit) -> None:
    with pytest.raises(ValueError, match="no"):
        await run(journal, "a", Work(ValueError("no")))
    await run(journal, "a", Work("x"))
    assert [commit.steps["a", n]["state"] for n in (0, 1)] == ["failed", "done"]


async def test_steps_at_the_same_time_have_the_numbers_of_their_start_whatever_ends_first(
    journal: Journal, commit: FakeCommit
) -> None:
    async def slow(number: int, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return number

    def all_of(one: Journal) -> Awaitable[list[Any]]:
        return asyncio.gather(*(run(one, "part", lambda n=n: slow(n, 9 - n), n) for n in range(8)))  # type: ignore[misc]

    assert await all_of(journal) == list(range(8))
    resumed = commit.journal(TASK, epoch=2)
    assert await all_of(resumed) == list(range(8))
    assert (resumed.executed, resumed.replayed) == (0, 8)


@pytest.mark.parametrize("result", [object(), float("nan"), {1, 2}, b"raw"])
async def test_a_result_that_is_not_json_is_refused_by_the_name_of_its_step(journal: Journal, result: object) -> None:
    with pytest.raises(BadInput, match="the result of step 'think' is not JSON") as caught:
        await run(journal, "think", Work(result))
    assert caught.value.context == {"step": "think"}


async def test_a_request_that_is_not_json_is_refused_before_anything_happens(
    journal: Journal, commit: FakeCommit
) -> None:
    work = Work("x")
    with pytest.raises(BadInput, match="the request of step 'think' is not JSON"):
        await run(journal, "think", work, [object()])
    assert (work.calls, commit.history) == (0, [])


async def test_a_run_that_belongs_to_another_worker_ends_before_it_pays(journal: Journal, commit: FakeCommit) -> None:
    commit.is_fenced = True
    work = Work("x")
    with pytest.raises(Fenced, match=f"task {TASK} is no longer at epoch 1: another worker owns it"):
        await run(journal, "think", work)
    assert work.calls == 0


async def test_a_run_that_was_given_away_during_a_step_ends_without_its_result(
    journal: Journal, commit: FakeCommit
) -> None:
    async def call() -> str:
        commit.is_fenced = True
        return "late"

    with pytest.raises(Fenced):
        await run(journal, "think", call)
    assert "result" not in commit.steps["think", 0]


async def test_what_a_step_cost_is_kept_beside_its_result(journal: Journal, commit: FakeCommit) -> None:
    await journal.step("ask", kind="llm", request=1, call=Work({"n": 3}), usage_of=lambda reply: {"tokens": reply["n"]})
    assert commit.steps["ask", 0]["usage"] == {"tokens": 3}
    assert commit.steps["ask", 0]["kind"] == "llm"
    await run(journal, "free", Work(1))
    assert commit.steps["free", 0]["usage"] is None


def test_a_fingerprint_does_not_depend_on_the_order_of_keys_and_does_on_all_else() -> None:
    assert fingerprint("a", 0, {"x": 1, "y": 2}) == fingerprint("a", 0, {"y": 2, "x": 1})
    others = [("a", 0, 1), ("b", 0, 1), ("a", 1, 1), ("a", 0, 2), ("a", 0, "1"), ("a", 0, [1]), ("a", 0, None)]
    assert len({fingerprint(*one) for one in others}) == len(others)


def test_a_fingerprint_is_the_same_in_every_process_and_release() -> None:
    assert fingerprint("chat", 0, {"q": "é\ud800"}) == "b5403d915d36edcbe791406fedef5d9d"
