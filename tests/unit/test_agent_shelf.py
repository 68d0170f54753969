"""When a queue is taken off into the ledger: only under pressure, and only when it is one tenant's."""

import asyncio
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from shared.contracts import Priority
from tests.fakes.hand_loop import at_once
from workers.agents import shelf as room
from workers.agents.shelf import Key, Shelf, crowded

WINDOW = 16


@pytest.mark.parametrize(
    ("reserved", "found"),
    [
        ({}, []),
        ({("normal", "a"): 7}, []),
        ({("normal", "a"): 8}, ["normal"]),
        ({("normal", "a"): 2, ("normal", "b"): 2, ("normal", "c"): 2, ("normal", "d"): 2}, []),
        ({("normal", "a"): 3, ("normal", "b"): 2, ("normal", "c"): 2, ("normal", "d"): 1}, ["normal"]),
        ({("normal", "a"): 4, ("batch", "a"): 4}, []),
        ({("interactive", "a"): 9, ("batch", "b"): 16}, ["interactive", "batch"]),
    ],
)
def test_a_window_half_full_of_which_a_tenant_has_more_than_a_quarter_is_worth_a_look(
    reserved: Mapping[Key, int], found: list[Priority]
) -> None:
    assert crowded(reserved, window=WINDOW) == found


class Queue:
    """A broker's queues, and what was taken off them."""

    def __init__(self, **depths: int | Exception) -> None:
        self.depths = depths
        self.looks: list[Priority] = []
        self.taken: list[Priority] = []

    async def depth(self, priority: Priority) -> int:
        self.looks.append(priority)
        found = self.depths[priority]
        if isinstance(found, Exception):
            raise found
        return found

    async def take_off(self, priority: Priority) -> int:
        self.taken.append(priority)
        return int(str(self.depths[priority]))


def shelf_of(queue: Queue, reserved: Mapping[Key, int]) -> Shelf:
    return Shelf(
        reserved=lambda: reserved, depth=queue.depth, take_off=queue.take_off, deep=512, window=WINDOW,
    )  # fmt: skip


async def test_only_a_deep_queue_is_taken_off() -> None:
    queue = Queue(normal=511, batch=512)
    await shelf_of(queue, {("normal", "a"): 16, ("batch", "b"): 16}).look()
    assert (queue.looks, queue.taken) == (["normal", "batch"], ["batch"])


async def test_without_pressure_the_broker_is_not_asked() -> None:
    queue = Queue()
    await shelf_of(queue, {("normal", "a"): 3}).look()
    assert queue.looks == []


def test_a_broker_that_is_away_stops_no_later_look() -> None:
    queue = Queue(normal=OSError("gone"))
    shelf = shelf_of(queue, {("normal", "a"): 16})

    async def main() -> None:
        watching = asyncio.create_task(shelf.watch())
        await asyncio.sleep(room.LOOK_S * 2.5)
        queue.depths["normal"] = 600
        await asyncio.sleep(room.LOOK_S)
        watching.cancel()

    with capture_logs() as logs:
        at_once(main())
    assert [one["event"] for one in logs] == ["shelf.failed", "shelf.failed", "shelf.taken_off"]
    assert queue.taken == ["normal"]
