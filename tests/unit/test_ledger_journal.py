"""The journal: a completed step is never called again, and what cannot be journaled is refused by name."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from shared.errors import BadInput, Fenced, LLMTimeout
from shared.ledger.journal import Journal
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.records import fingerprint
from shared.ledger.suspension import Suspended
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


async def test_a_step_that_the_leaving_worker_cut_off_is_in_doubt_and_called_again(
    journal: Journal, commit: FakeCommit
) -> None:
    journal.books_cuts = lambda: False
    with pytest.raises(asyncio.CancelledError):
        await run(journal, "think", Work(asyncio.CancelledError()))
    assert commit.history == [("intent", "think", 0)]
    again = Work("now")
    resumed = commit.journal(TASK, epoch=2)
    assert (resumed.in_doubt, resumed.doubts_met) == (1, 0)
    assert await run(resumed, "think", again) == "now"
    assert again.calls == 1
    assert (resumed.in_doubt, resumed.doubts_met) == (1, 1)
    later = commit.journal(TASK, epoch=3)
    assert await run(later, "think", again) == "now"
    assert (later.in_doubt, later.doubts_met) == (1, 0), "once in doubt, always told, and counted once"


async def test_a_call_that_is_cancelled_in_flight_is_over_and_what_it_cost_by_then_is_booked(
    journal: Journal, commit: FakeCommit
) -> None:
    work = Work(asyncio.CancelledError(), "second")
    with pytest.raises(asyncio.CancelledError):
        await journal.step("ask", kind="llm", request=1, call=work, usage_if_cut=lambda: {"input_tokens": 9})
    await journal.written()
    row = commit.steps["ask", 0]
    assert (row["state"], row["result"], row["usage"]) == ("failed", {"error": "cut off"}, {"input_tokens": 9})
    resumed = commit.journal(TASK, epoch=2)
    assert await resumed.step("ask", kind="llm", request=1, call=work) == "second"
    assert resumed.in_doubt == 0


async def test_a_result_that_is_cut_off_while_it_is_written_is_written_all_the_same(
    commit: FakeCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, journal = commit.write, commit.journal(TASK)
    troubles = [asyncio.CancelledError()]

    async def cut_once(kind: Any, key: Any, row: Any) -> Any:
        if kind == "result" and troubles:
            raise troubles.pop()
        return await write(kind, key, row)

    monkeypatch.setattr(commit, "write", cut_once)
    work = Work("paid")
    with pytest.raises(asyncio.CancelledError):
        await run(journal, "think", work)
    await journal.written()
    assert await run(commit.journal(TASK, epoch=2), "think", work) == "paid"
    assert work.calls == 1


@pytest.mark.parametrize("first", ["x", LLMTimeout("too late")])
async def test_a_resumed_step_that_asks_for_something_else_parks_the_run_with_the_reason(
    journal: Journal, commit: FakeCommit, first: Any
) -> None:
    with contextlib.suppress(LLMTimeout):
        await run(journal, "think", Work(first), {"q": 1})
    work, resumed = Work("y"), commit.journal(TASK, epoch=2)
    with pytest.raises(Suspended):
        await run(resumed, "think", work, {"q": 2})
    assert (work.calls, resumed.is_left) == (0, True)
    assert resumed.suspension is not None
    assert resumed.suspension.state == "parked"
    error = resumed.suspension.error or {}
    assert error["code"] == "step_changed"
    assert "step 'think' #0 asks for something else than before" in error["message"]
    assert error["context"] == {"step": "think", "ordinal": 0, "fingerprint": fingerprint("think", 0, {"q": 2})}


async def test_an_agent_may_want_the_old_result_of_a_step_that_has_changed(
    journal: Journal, commit: FakeCommit
) -> None:
    await run(journal, "think", Work("old"), {"q": 1})
    work = Work("new")
    assert await run(commit.journal(TASK, epoch=2, on_change="reuse"), "think", work, {"q": 2}) == "old"
    assert work.calls == 0


async def test_an_agent_may_want_a_step_that_has_changed_done_again(journal: Journal, commit: FakeCommit) -> None:
    await run(journal, "think", Work("old"), {"q": 1})
    work = Work("new")
    assert await run(commit.journal(TASK, epoch=2, on_change="rerun"), "think", work, {"q": 2}) == "new"
    assert await run(commit.journal(TASK, epoch=3), "think", work, {"q": 2}) == "new"
    assert work.calls == 1


async def test_what_was_not_completed_may_ask_for_something_else(journal: Journal, commit: FakeCommit) -> None:
    journal.books_cuts = lambda: False
    with pytest.raises(asyncio.CancelledError):
        await run(journal, "think", Work(asyncio.CancelledError()), {"q": 1})
    assert await run(commit.journal(TASK, epoch=2), "think", Work("new"), {"q": 2}) == "new"


async def test_a_large_result_goes_to_a_table_of_its_own_and_comes_back(commit: FakeCommit) -> None:
    knobs, large = LedgerKnobs(blob_bytes=100), {"text": "é" * 100}
    work = Work(large, "small")
    for epoch in (1, 2):
        one = commit.journal(TASK, epoch=epoch, knobs=knobs)
        assert await run(one, "think", work) == large
        assert await run(one, "brief", work) == "small"
    assert work.calls == 2
    assert commit.history[:3] == [("intent", "think", 0), ("blob", "think", 0), ("result", "think", 0)]
    assert (commit.steps["think", 0]["result"], commit.steps["think", 0]["in_blob"]) == (None, True)
    assert ("brief", 0) not in commit.blobs


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
    assert commit.steps["ask", 0]["result"]["error"]["code"] == "llm_timeout"
    with pytest.raises(LLMTimeout, match="whose text cannot be stored"):
        await run(commit.journal(TASK, epoch=2), "ask", nul)
    assert await run(commit.journal(TASK, epoch=2), "think", work) == "second try"


async def test_what_a_call_cost_that_a_time_limit_ended_is_booked(journal: Journal, commit: FakeCommit) -> None:
    with pytest.raises(TimeoutError):
        await journal.step("ask", kind="llm", request=1, call=Work(TimeoutError()), usage_if_cut=lambda: {"n": 9})
    assert commit.steps["ask", 0]["usage"] == {"n": 9}


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
async def test_a_result_that_is_not_json_is_refused_by_the_name_of_its_step_and_recorded_as_a_failure(
    journal: Journal, commit: FakeCommit, result: object
) -> None:
    usage = {"input_tokens": 7}
    with pytest.raises(BadInput, match="the result of step 'think' is not JSON") as caught:
        await journal.step("think", kind="llm", request=None, call=Work(result), usage_of=lambda _result: usage)
    assert caught.value.context == {"step": "think"}
    step = commit.steps["think", 0]
    assert (step["state"], step["usage"]) == ("failed", usage), "its end was seen, and it is paid for"
    again = commit.journal(TASK, epoch=2)
    with pytest.raises(BadInput, match="the result of step 'think' is not JSON"):
        await again.step("think", kind="llm", request=None, call=Work("new"))
    assert again.in_doubt == 0


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
