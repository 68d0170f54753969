"""The background look at every node, several times a second, and at once when somebody waits for news."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from shared.db.facts import Facts
from shared.db.look import Eye
from shared.db.silence import Silence

log = structlog.get_logger()

HURRY_S = 0.002
"""Between two looks at a node that somebody waits for."""


class Watch:
    """Looks at each node on a task of its own: one that hangs delays no other. Belongs to one event loop."""

    def __init__(
        self, eyes: Mapping[str, Eye], *, every_s: float, silent_after_s: float,
        on_look: Callable[[str, Facts | None], bool], on_primary: Callable[[Eye, Facts], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`on_look` answers whether the node is the primary: to it alone `on_primary` may write."""
        self.silence = Silence(after_s=silent_after_s)
        self._eyes = eyes
        self._every_s = every_s
        self._on_look = on_look
        self._on_primary = on_primary
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: dict[str, int] = dict.fromkeys(eyes, 0)
        self._wake: dict[str, asyncio.Event] = {name: asyncio.Event() for name in eyes}
        self._begun: dict[str, int] = dict.fromkeys(eyes, 0)
        self._ended: dict[str, int] = dict.fromkeys(eyes, 0)
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begin, on the running loop."""
        for name in self._eyes:
            self._tasks.append(asyncio.create_task(self._keep_looking(name), name=f"db-watch-{name}"))

    @property
    def is_running(self) -> bool:
        """Whether it was started and not closed."""
        return bool(self._tasks)

    async def until(self, is_true: Callable[[], bool], *, within_s: float, hurry: str | None = None) -> bool:
        """Wait until looks have made something true; look at the node `hurry` without pause meanwhile."""
        if hurry is not None:
            self._wanted[hurry] += 1
            self._wake[hurry].set()
        try:
            async with asyncio.timeout(within_s):
                while not is_true():
                    await self._news.wait()
        except TimeoutError:
            return is_true()
        finally:
            if hurry is not None:
                self._wanted[hurry] -= 1
        return True

    async def look_again(self, *, within_s: float, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Look at every node now; return when all have been looked at since, or enough is known."""
        begun = dict(self._begun)  # a look under way began before the question: the one after it counts
        for wake in self._wake.values():
            wake.set()
        await self.until(
            lambda: is_enough() or all(self._ended[name] > count for name, count in begun.items()), within_s=within_s
        )

    async def close(self) -> None:
        """Stop looking."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for eye in self._eyes.values():
            await eye.close()

    async def _keep_looking(self, name: str) -> None:
        eye, wake = self._eyes[name], self._wake[name]
        while True:
            wake.clear()
            self._begun[name] += 1
            began = time.monotonic()
            self.silence.asked(name, at=began)
            try:
                facts = await eye.look()
                if facts is not None:
                    self.silence.answered(name)
                self.silence.looked(began=began)
                is_primary = self._on_look(name, facts)
            except Exception:  # the loop must outlive one look: logged, and the node's last answer grows old
                log.exception("db.look_failed", node=name)
                facts, is_primary = None, False
            self._ended[name] = self._begun[name]
            news, self._news = self._news, asyncio.Event()
            news.set()
            if is_primary and facts is not None:
                self.silence.asked(name, at=time.monotonic())
                await self._on_primary(eye, facts)
                if eye.is_connected:
                    self.silence.answered(name)
            if self._wanted[name] and facts is not None:
                await asyncio.sleep(HURRY_S)
                continue
            try:
                async with asyncio.timeout(self._every_s * random.uniform(0.5, 1.25)):
                    await wake.wait()
            except TimeoutError:
                continue
