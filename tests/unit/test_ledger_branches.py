"""Branches of one run: it gives its slot back once all of them wait, and leaves none in the middle of a step."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from shared.errors import BadInput
from shared.ledger.suspension import Suspended, Suspension
from tests.fakes.fake_ledger import FakeCommit
from tests.fakes.hand_loop import at_once
from tests.fakes.journal_calls import LEAVES, Post, now, sleep, step, wait_for

TASK = UUID(int=7)


async def both(kind: str, *branches: Any) -> None:
    if kind == "gather":
        await asyncio.gather(*branches)
        return
    async with asyncio.TaskGroup() as group:
        for branch in branches:
            group.create_task(branch)


@pytest.mark.parametrize("kind", ["gather", "group"])
def test_a_branch_that_waits_long_does_not_stop_one_that_works(kind: str) -> None:
    commit = FakeCommit()
    journal = commit.journal(TASK)

    async def works() -> None:
        for number in range(3):
            await step(journal, f"part{number}", 10)

    async def main() -> None:
        with pytest.raises(LEAVES):
            await both(kind, sleep(journal, 3600), works())
        assert now() == 30

    at_once(main())
    assert {name for name, _ in commit.steps} == {"sleep", "part0", "part1", "part2"}
    assert all(row["state"] == "done" for (name, _), row in commit.steps.items() if name != "sleep")
    assert journal.suspension is not None
    assert journal.suspension.wait_s == pytest.approx(3570)


@pytest.mark.parametrize("kind", ["gather", "group"])
def test_whatever_any_branch_waits_for_wakes_the_run(kind: str) -> None:
    journal = FakeCommit().journal(TASK)

    async def later() -> None:
        await step(journal, "ask", 10)
        await wait_for(journal, Post(), wait_s=500)

    async def main() -> None:
        with pytest.raises(LEAVES):
            await both(kind, sleep(journal, 3600), later(), wait_for(journal, Post(), name="stop"))

    at_once(main())
    assert journal.suspension is not None
    assert (journal.suspension.kind, set(journal.suspension.signals)) == ("several", {"ok", "stop"})
    assert journal.suspension.wait_s == pytest.approx(500)


def test_a_short_wait_in_one_branch_is_not_cut_by_a_long_one_in_another() -> None:
    commit = FakeCommit()
    journal = commit.journal(TASK)

    async def main() -> None:
        with pytest.raises(Suspended):
            await asyncio.gather(sleep(journal, 3600, "long"), sleep(journal, 4, "short"))
        assert now() == 4

    at_once(main())
    assert commit.steps["short", 0]["state"] == "done"


@pytest.mark.parametrize("kind", ["gather", "group"])
def test_a_step_in_flight_in_another_branch_is_finished_when_the_run_is_put_down(kind: str) -> None:
    commit = FakeCommit()
    journal = commit.journal(TASK)

    async def two() -> None:
        await step(journal, "quick", 2)
        await step(journal, "never")

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, journal.put_down, Suspension(state="queued"))
        with pytest.raises(LEAVES):
            await both(kind, two(), step(journal, "slow", 20))
        assert now() == 20

    at_once(main())
    assert {name: row["state"] for (name, _), row in commit.steps.items()} == {"quick": "done", "slow": "done"}


def test_a_signal_that_comes_while_another_branch_works_ends_its_wait_at_once() -> None:
    journal, post = FakeCommit().journal(TASK), Post()

    async def main() -> None:
        asyncio.get_running_loop().call_later(7.2, setattr, post, "value", "yes")

        async def approval() -> float:
            await wait_for(journal, post)
            return now()

        heard_at, _ = await asyncio.gather(approval(), step(journal, "slow", 60))
        assert heard_at == 7.5

    at_once(main())
    assert journal.suspension is None


def test_a_wait_that_a_branch_gives_up_does_not_put_the_run_down_later() -> None:
    journal = FakeCommit().journal(TASK)

    async def main() -> None:
        waiting = asyncio.create_task(wait_for(journal, Post()))
        await step(journal, "slow", 10)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(10)
        await step(journal, "more", 10)

    at_once(main())
    assert journal.suspension is None


def test_a_wait_inside_a_step_is_refused_because_a_step_cannot_be_left_half_way() -> None:
    journal = FakeCommit().journal(TASK)

    async def call() -> None:
        await sleep(journal, 60)

    async def main() -> None:
        with pytest.raises(BadInput, match="'sleep' waits inside a step: wait in the agent itself"):
            await journal.step("outer", kind="step", request=None, call=call)

    at_once(main())


def test_steps_inside_a_step_are_finished_with_it_when_the_run_is_put_down() -> None:
    commit = FakeCommit()
    journal = commit.journal(TASK)

    async def call() -> str:
        await step(journal, "inner1", 10)
        return await step(journal, "inner2", 10)

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, journal.put_down, Suspension(state="queued"))
        assert await journal.step("outer", kind="step", request=None, call=call) == "inner2"
        with pytest.raises(Suspended):
            await step(journal, "next")

    at_once(main())
    assert {row["state"] for row in commit.steps.values()} == {"done"}


def test_an_agent_that_catches_every_exception_does_not_stop_its_suspension() -> None:
    journal = FakeCommit().journal(TASK)

    async def agent() -> None:
        try:
            await sleep(journal, 60)
        except Exception:
            pytest.fail("an agent's own handlers must not see it")

    with pytest.raises(Suspended):
        at_once(agent())
