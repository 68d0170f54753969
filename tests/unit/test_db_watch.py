"""What counts as news of a node: a look that began after the question, and nothing before it."""

import asyncio
from typing import cast

from shared.db.facts import Facts
from shared.db.look import Eye
from shared.db.watch import Watch


class HeldEye:
    """Each look ends when it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.free = asyncio.Semaphore(0)

    async def look(self) -> Facts | None:
        self.begun += 1
        await self.free.acquire()
        return None

    async def close(self) -> None:
        """Nothing is open."""


async def no_heartbeat(_eye: Eye, _facts: Facts) -> None:
    raise AssertionError("nobody is the primary")


def started(eye: HeldEye) -> Watch:
    watch = Watch(
        {"a": cast(Eye, eye)}, every_s=60.0, silent_after_s=60.0, on_look=lambda *_: False, on_primary=no_heartbeat
    )
    watch.start()
    return watch


async def test_a_look_that_was_under_way_when_news_was_asked_for_is_not_the_answer() -> None:
    eye = HeldEye()
    watch = started(eye)
    while eye.begun < 1:
        await asyncio.sleep(0)
    asking = asyncio.create_task(watch.look_again(within_s=30.0))
    await asyncio.sleep(0)
    eye.free.release()
    while eye.begun < 2:  # at once, not after a minute
        await asyncio.sleep(0)
    assert not asking.done()
    eye.free.release()
    await asking
    assert eye.begun == 2
    await watch.close()


async def test_whoever_waits_for_news_waits_no_longer_than_it_says() -> None:
    eye = HeldEye()
    watch = started(eye)
    await watch.look_again(within_s=0.01)
    await watch.close()
