"""Waiting in a journal: short waits are sat out, long ones give the slot back, once every branch of the run waits."""

import asyncio
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared.errors import FleetError, LLMRateLimited, RetryLater, WaitTimeout
from shared.ledger.journal import Journal
from shared.ledger.retry import ONCE, Retry, next_wait_s
from shared.ledger.suspension import NEVER_SEEN, Suspended, Suspension, merged
from tests.fakes.fake_ledger import FakeCommit
from tests.fakes.hand_loop import at_once
from tests.fakes.journal_calls import Post, now, sleep, step, wait_for

TASK = UUID(int=7)
HERE_S = 5.0
"""`suspend_after_s` as it comes."""


def failing(*errors: Exception) -> Callable[[], Any]:
    left = list(errors)

    async def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


async def test_a_short_sleep_is_sat_out_and_not_slept_again_by_the_next_claim() -> None:
    commit = FakeCommit()

    async def main() -> None:
        await sleep(commit.journal(TASK), HERE_S)
        assert now() == HERE_S
        await sleep(commit.journal(TASK, epoch=2), HERE_S)
        assert now() == HERE_S

    await asyncio.to_thread(at_once, main())
    assert commit.history == [("intent", "sleep", 0), ("result", "sleep", 0)]


def test_a_long_sleep_gives_the_slot_back_at_once_and_goes_on_where_it_was_when_its_time_has_come() -> None:
    commit = FakeCommit()

    async def main() -> None:
        journal = commit.journal(TASK)
        with pytest.raises(Suspended):
            await sleep(journal, 60)
        assert now() == 0
        assert journal.suspension == Suspension(kind="sleep", wait_s=60), "no signal of before ends it"
        assert journal.is_left
        commit.steps["sleep", 0]["wait_s"] = 0.0
        await sleep(commit.journal(TASK, epoch=2), 60)
        assert commit.steps["sleep", 0]["state"] == "done"

    at_once(main())


def test_a_run_that_is_woken_too_early_waits_for_what_is_left() -> None:
    commit = FakeCommit()

    async def main() -> None:
        with pytest.raises(Suspended):
            await sleep(commit.journal(TASK), 60)
        commit.steps["sleep", 0]["wait_s"] = 30.0
        again = commit.journal(TASK, epoch=2)
        with pytest.raises(Suspended):
            await sleep(again, 60)
        assert again.suspension is not None
        assert again.suspension.wait_s == pytest.approx(30, abs=1)
        assert [kind for kind, _, _ in commit.history] == ["intent"], "the wait began once"

    at_once(main())


def test_a_signal_that_has_come_ends_its_wait_and_is_kept() -> None:
    commit, post = FakeCommit(), Post({"yes": True})

    async def main() -> None:
        assert await wait_for(commit.journal(TASK), post) == {"yes": True}
        assert await wait_for(commit.journal(TASK, epoch=2), Post()) == {"yes": True}

    at_once(main())


def test_a_run_that_waits_for_a_signal_says_what_wakes_it_and_what_it_had_seen_by_then() -> None:
    journal, post = FakeCommit().journal(TASK), Post()

    async def main() -> None:
        with pytest.raises(Suspended):
            await wait_for(journal, post, wait_s=600)

    at_once(main())
    assert journal.suspension == Suspension(kind="signal", signals=("ok",), wait_s=600, seen_wakes=3)
    assert journal.suspension.row()["waiting_for"] == {"kind": "signal", "signals": ("ok",)}


def test_a_short_wait_for_a_signal_looks_again_and_again_in_its_place() -> None:
    journal, post = FakeCommit().journal(TASK), Post()

    async def main() -> None:
        asyncio.get_running_loop().call_later(1.2, setattr, post, "value", "late")
        assert await wait_for(journal, post, wait_s=HERE_S) == "late"
        assert now() == 1.5

    at_once(main())
    assert journal.suspension is None


def test_a_wait_whose_time_is_up_fails_in_every_claim_alike() -> None:
    commit = FakeCommit()

    async def main() -> None:
        for epoch in (1, 2):
            with pytest.raises(WaitTimeout, match="too late"):
                await wait_for(commit.journal(TASK, epoch=epoch), Post(), wait_s=2)
            assert now() == 2

    at_once(main())


def test_a_signal_that_comes_with_the_last_second_counts() -> None:
    commit = FakeCommit()

    async def main() -> None:
        with pytest.raises(Suspended):
            await wait_for(commit.journal(TASK), Post(), wait_s=600)
        commit.steps["signal.ok", 0]["wait_s"] = -1.0
        assert await wait_for(commit.journal(TASK, epoch=2), Post("just in time"), wait_s=600) == "just in time"

    at_once(main())


def test_a_failure_that_passes_is_tried_again_after_a_short_wait_and_executions_are_counted() -> None:
    commit = FakeCommit()

    async def main() -> None:
        journal = commit.journal(TASK)
        call = failing(OSError("no route"), LLMRateLimited("slow down", retry_after_s=4))
        retry = Retry(attempts=3, base_s=0.001)
        assert await journal.step("ask", kind="llm", request=1, call=call, retry=retry) == "done"
        assert now() == pytest.approx(4, abs=0.01)

    at_once(main())
    assert commit.steps["ask", 0]["executions"] == 3


def test_a_retry_that_is_far_off_gives_the_slot_back_and_is_made_by_whoever_goes_on() -> None:
    commit = FakeCommit()
    call = failing(LLMRateLimited("slow down", retry_after_s=60))

    async def ask(journal: Journal) -> Any:
        return await journal.step("ask", kind="llm", request=1, call=call, retry=Retry(attempts=2, base_s=0.001))

    async def main() -> None:
        first = commit.journal(TASK)
        with pytest.raises(Suspended):
            await ask(first)
        assert first.suspension == Suspension(kind="retry", wait_s=60)
        assert (commit.steps["ask", 0]["state"], commit.steps["ask", 0]["wait_s"]) == ("waiting", 60)
        commit.steps["ask", 0]["wait_s"] = 0.0
        second = commit.journal(TASK, epoch=2)
        assert await ask(second) == "done"
        assert second.in_doubt == 0, "everybody saw how the first try ended"

    at_once(main())


def test_tries_are_counted_over_all_claims() -> None:
    commit = FakeCommit()

    async def main() -> None:
        with pytest.raises(Suspended):
            await commit.journal(TASK).step(
                "ask", kind="llm", request=1, call=failing(LLMRateLimited("no", retry_after_s=60)), retry=Retry(2)
            )
        commit.steps["ask", 0]["wait_s"] = 0.0
        with pytest.raises(LLMRateLimited, match="still no"):
            await commit.journal(TASK, epoch=2).step(
                "ask", kind="llm", request=1, call=failing(LLMRateLimited("still no", retry_after_s=60)), retry=Retry(2)
            )

    at_once(main())


@pytest.mark.parametrize(
    ("error", "tries", "retry", "wait_s"),
    [
        (ValueError("no"), 1, Retry(), None),
        (OSError("no"), 4, Retry(attempts=4), None),
        (LLMRateLimited("no", retry_after_s=90), 1, Retry(cap_s=1), 90.0),
        (LLMRateLimited("no", retry_after_s=90), 1, ONCE, None),
        (RetryLater("later", retry_after_s=90), 1, ONCE, 90.0),
        (RetryLater("later", retry_after_s=90), 10_000, ONCE, 90.0),
        (RetryLater("later"), 10_000, ONCE, 1.0),
    ],
)
def test_when_a_failure_is_tried_again(error: Exception, tries: int, retry: Retry, wait_s: float | None) -> None:
    assert next_wait_s(error, tries=tries, retry=retry, rng=random.Random(1)) == wait_s


def test_a_run_is_put_down_between_its_steps_and_what_is_in_flight_is_finished_first() -> None:
    commit = FakeCommit()
    journal = commit.journal(TASK)

    async def agent() -> None:
        await step(journal, "first", 10)
        await step(journal, "second", 10)

    async def main() -> None:
        asyncio.get_running_loop().call_later(3, journal.put_down, Suspension(state="queued"))
        with pytest.raises(Suspended):
            await agent()
        assert now() == 10

    at_once(main())
    assert set(commit.steps) == {("first", 0)}
    assert commit.steps["first", 0]["state"] == "done"


def test_a_run_that_is_asked_to_stop_does_not_sit_a_wait_out() -> None:
    journal = FakeCommit().journal(TASK)

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, journal.put_down, Suspension(state="queued"))
        with pytest.raises(Suspended):
            await sleep(journal, HERE_S)
        assert now() == 1

    at_once(main())


def test_a_run_that_ends_before_its_next_step_was_never_told_to_stop() -> None:
    journal = FakeCommit().journal(TASK)

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, journal.put_down, Suspension(state="queued"))
        await step(journal, "last", 2)
        assert not journal.is_left

    at_once(main())


@pytest.mark.parametrize(
    ("first", "second", "state"),
    [
        (Suspension(state="parked", error={}), Suspension(), "parked"),
        (Suspension(), Suspension(state="queued"), "queued"),
        (Suspension(state="queued"), Suspension(state="parked", error={}), "parked"),
    ],
)
def test_what_stops_a_run_for_good_outweighs_what_it_waits_for(
    first: Suspension, second: Suspension, state: str
) -> None:
    assert merged(first, second).state == state


def test_the_earliest_of_two_waits_counts_and_the_oldest_look() -> None:
    both = merged(
        Suspension(kind="signal", signals=("a",), seen_wakes=4),
        Suspension(kind="children", children=(("c",),), wait_s=9, seen_wakes=2),
    )
    assert (both.wait_s, both.seen_wakes, both.signals, both.children) == (9, 2, ("a",), (("c",),))
    assert merged(Suspension(kind="sleep"), Suspension(kind="retry")).seen_wakes == NEVER_SEEN


def test_two_branches_that_gather_are_woken_by_the_children_of_either() -> None:
    one, other = (Suspension(kind="children", children=(ids,)) for ids in (("a", "b"), ("b", "c")))
    assert one.row()["waiting_for"] == {"kind": "children", "ids": ("a", "b")}
    assert merged(one, merged(other, one)).row()["waiting_for"] == {
        "kind": "several", "ids": ("b", "c", "a"), "groups": (("a", "b"), ("b", "c"))
    } | {"ids": ("a", "b", "c")}  # fmt: skip


def test_a_failure_of_the_fleets_own_without_a_rule_to_retry_stands() -> None:
    async def main() -> None:
        with pytest.raises(FleetError):
            await (
                FakeCommit()
                .journal(TASK)
                .step("ask", kind="llm", request=1, call=failing(LLMRateLimited("no", retry_after_s=1)))
            )

    at_once(main())
