"""Chores in their order, each for itself: one that fails, or a server that is away, keeps none of the others."""

import asyncio
from typing import Any

import pytest

from shared.errors import DatabaseUnavailable, Fenced
from workers.keeper.knobs import CHORES, KeeperKnobs
from workers.keeper.rounds import Chore, Lane, Rounds


class Diary:
    """Chores that write down that they were done, and fail when told to."""

    def __init__(self, *, until: int) -> None:
        self.done: list[str] = []
        self.outages = 0
        self.stop = asyncio.Event()
        self._until = until

    def chore(self, name: str, *, error: Exception | None = None, again_s: float | None = None) -> Chore:
        async def act() -> float | None:
            self.done.append(name)
            if len(self.done) >= self._until:
                self.stop.set()
            if error is not None:
                raise error
            return again_s

        return Chore(name, act, every_s=3600)

    def lane(self, *chores: Chore) -> Lane:
        return Lane(chores, on_outage=self._outage)

    def _outage(self) -> None:
        self.outages += 1


async def nothing() -> None:
    return


async def test_chores_that_are_due_together_are_done_in_their_order() -> None:
    diary = Diary(until=3)
    await diary.lane(*(diary.chore(name) for name in "abc")).run(diary.stop)
    assert diary.done == ["a", "b", "c"]


async def test_a_chore_that_wants_to_go_on_is_done_again_before_its_interval() -> None:
    diary = Diary(until=4)
    await diary.lane(diary.chore("more", again_s=0.0), diary.chore("once")).run(diary.stop)
    assert diary.done == ["more", "once", "more", "more"]


async def test_a_chore_that_fails_keeps_none_of_the_others_from_being_done() -> None:
    diary = Diary(until=2)
    await diary.lane(diary.chore("bad", error=RuntimeError("bug")), diary.chore("good")).run(diary.stop)
    assert diary.done == ["bad", "good"]
    assert diary.outages == 0


async def test_a_database_that_is_away_ends_the_chore_and_is_remembered() -> None:
    diary = Diary(until=2)
    away = DatabaseUnavailable("PostgreSQL does not answer")
    await diary.lane(diary.chore("bury", error=away), diary.chore("timers")).run(diary.stop)
    assert diary.outages == 1


async def test_a_leader_whose_term_is_over_stops_every_lane() -> None:
    diary = Diary(until=99)
    lanes = [diary.lane(diary.chore("deposed", error=Fenced("over"))), diary.lane(diary.chore("other"))]
    with pytest.raises(Fenced):
        await Rounds(lanes, close=nothing).run(diary.stop)


async def test_a_chore_that_hangs_is_seen() -> None:
    hangs = asyncio.Event()
    lane = Lane([Chore("hangs", hangs.wait, 1.0)], on_outage=lambda: None)
    rounds = Rounds([lane], close=nothing)
    assert rounds.busy_s() == 0
    running = asyncio.create_task(rounds.run(asyncio.Event()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert rounds.busy_with == "hangs"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"order": "bury"}, "order must name each chore once"),
        ({"order": ",".join((*CHORES, "bury"))}, "order must name each chore once"),
        ({"round_s": 0}, "round_s must be positive"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"retention_s": -1}, "retention_s must be 0 or more"),
        ({"stale_after_s": 2.0}, "stale_after_s must be at least three times renew_s"),
    ],
)
def test_knobs_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KeeperKnobs(**changes)


def test_the_order_of_chores_is_a_knob() -> None:
    assert KeeperKnobs(order=" , ".join(reversed(CHORES))).chores == tuple(reversed(CHORES))
