"""A provider that lives, dies in several ways and returns, and keeps a journal of every request it got."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from tests.fakes.chat_server import ChatServer, completion, http

Health = Literal["well", "silent", "cut", "broken", "refuses", "paced"]


class Provider(ChatServer):
    """Answers after `delay_s` while it is well; `silent` takes requests and says nothing, `cut` hangs up at once,
    `broken` answers 503, `refuses` answers 401, `paced` answers 429 for a minute.
    """

    def __init__(self, name: str, *, delay_s: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.delay_s = delay_s
        self.health: Health = "well"
        self.journal: list[float] = []
        """Monotonic seconds of every request."""
        self.in_flight = 0

    def die(self, how: Health) -> None:
        """Stop answering, also to whom is waiting."""
        self.health = how

    def since(self, moment: float) -> int:
        """Requests after a moment."""
        return sum(at > moment for at in self.journal)

    async def _act(self, writer: asyncio.StreamWriter) -> None:
        self.journal.append(time.monotonic())
        self.in_flight += 1
        try:
            if self.health == "well" and self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._answers()[self.health](writer)
            await writer.drain()
        finally:
            self.in_flight -= 1

    def _answers(self) -> dict[Health, Callable[[asyncio.StreamWriter], Awaitable[None]]]:
        return {
            "well": self._well,
            "silent": lambda writer: asyncio.sleep(3600),
            "cut": self._cut,
            "broken": lambda writer: self._status(writer, 503),
            "refuses": lambda writer: self._status(writer, 401),
            "paced": lambda writer: self._status(writer, 429, retry_after="60"),
        }

    async def _well(self, writer: asyncio.StreamWriter) -> None:
        said = self.asked[writer]["messages"][-1]["content"]
        writer.write(http(200, json.dumps(completion(f"{self.name} says: {said}", model=self.name)).encode()))

    async def _cut(self, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def _status(self, writer: asyncio.StreamWriter, status: int, **headers: str) -> None:
        writer.write(http(status, json.dumps({"error": {"message": "no"}}).encode(), **headers))
