"""An LLM plane of two scripted models around the real gate in memory: for tests of the ladder."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.errors import FleetError, LLMTimeout, LLMUnavailable
from shared.llm.answer_cache import Kept
from shared.llm.call_context import CallContext
from shared.llm.config_file import read_text
from shared.llm.guarded import GuardedChat
from shared.llm.messages import ChatReply, ChatRequest, ToolCall, Usage
from shared.llm.plane import LLMPlane, note_limits
from shared.llm.rules import key_rules
from shared.resilience.deadline import clamped
from shared.resilience.exchange import GateStore, LimitsSeen
from shared.resilience.gate import Gate
from shared.resilience.memory_store import MemoryStore

FILE = """\
version: 1
endpoints:
  first: {base_url: "http://first.test/v1", retry: RETRY, breaker: BREAKER}
  second: {base_url: "http://second.test/v1", retry: RETRY, breaker: BREAKER}
models:
  big: {endpoint: first, name: big-2FIRST}
  small: {endpoint: second, name: small-1SECOND}
chains: {default: [big, small]}
MORE
"""


class HandClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._began = datetime.now(UTC)

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self._passed_s += seconds

    def now(self) -> datetime:
        """The wall clock, moved."""
        return self._began + timedelta(seconds=self._passed_s)

    def monotonic(self) -> float:
        """Seconds that the test let pass."""
        return self._passed_s


class FakeAdapter:
    """An `Adapter` that says the next line of its script, and echoes without one."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.script: deque[str | ToolCall | FleetError] = deque()
        self.requests: list[ChatRequest] = []
        self.hangs = False
        self.hung_s = 0.0
        """Seconds that its hanging calls were given in all."""
        self.answer_s = 0.0
        self.seen: LimitsSeen | None = None
        """What its headers say about limits."""
        self.is_closed = False

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Answer, fail or hang until the time is up, as a real adapter would."""
        self.requests.append(request)
        if self.seen is not None:
            note_limits(self.seen)
        if self.hangs:
            limit_s = clamped(request.timeout_s or 60.0)
            self.hung_s += limit_s
            await asyncio.sleep(limit_s)
            raise LLMTimeout(f"{self.endpoint} gave no complete answer", phase="deadline", limit_s=limit_s)
        await asyncio.sleep(self.answer_s)
        line = self.script.popleft() if self.script else f"{self.endpoint}: {request.messages[-1].content}"
        if isinstance(line, FleetError):
            raise line
        calls = (line,) if isinstance(line, ToolCall) else ()
        return ChatReply(
            text="" if isinstance(line, ToolCall) else line, tool_calls=calls, model=request.model or "?",
            endpoint=self.endpoint, usage=Usage(3, 5), finish_reason="tool_calls" if calls else "stop", seconds=0.0,
        )  # fmt: skip

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        """The answer word by word, then whole."""
        reply = await self.chat(request)
        for word in reply.text.split(" "):
            yield word
        yield reply

    async def aclose(self) -> None:
        """Remember it."""
        self.is_closed = True


class FakeAnswers:
    """An `AnswerCache` in a dict."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Kept] = {}
        self.is_away = False
        self.clock: Any = HandClock()

    async def secret(self, *, is_last: bool = False) -> bytes | None:
        """A fixed one."""
        return None if self.is_away else b"a secret for tests"

    async def find(self, tenant: str, key: str, *, max_age_s: float, is_last: bool = False) -> Kept | None:
        """See `AnswerCache.find`."""
        found = self.kept.get((tenant, key))
        return found if found is not None and found.age_s(self.clock.now()) <= max_age_s else None

    async def keep(self, tenant: str, key: str, answer: Kept) -> None:
        """See `AnswerCache.keep`."""
        self.kept[tenant, key] = answer

    async def erase(self, tenant: str) -> int:
        """See `AnswerCache.erase`."""
        names = [name for name in self.kept if name[0] == tenant]
        for name in names:
            del self.kept[name]
        return len(names)


class PlaneWorld:
    """Two models, `big` at `first` and `small` at `second`, and everything that can be said about them."""

    def __init__(
        self,
        *,
        first: str = "",
        second: str = "",
        more: str = "",
        breaker: str = "{}",
        retries_before_fallback: int = 1,
        store: GateStore | None = None,
    ) -> None:
        retry = f"{{base_s: 0.001, retries_before_fallback: {retries_before_fallback}}}"
        text = FILE.replace("RETRY", retry).replace("BREAKER", breaker).replace("MORE", more)
        text = text.replace("FIRST", f", {first}" if first else "").replace("SECOND", f", {second}" if second else "")
        configured = read_text(text, source="llm.yaml", environment={})
        self.clock = HandClock()
        self.first, self.second = FakeAdapter("first"), FakeAdapter("second")
        self.answers = FakeAnswers()
        self.answers.clock = self.clock
        self.draw: Callable[[], float] = random.random
        self.plane = LLMPlane(
            configured,
            gate=Gate(store or MemoryStore(), key_rules(configured.config)),
            adapters={"first": self.first, "second": self.second},
            cache=self.answers,
            clock=self.clock,
            draw=lambda: self.draw(),
        )

    def door(self, **context: Any) -> GuardedChat:
        """A run's own guarded chat."""
        return GuardedChat(self.plane, CallContext(**{"run": "run-1", **context}))

    async def chat(self, request: ChatRequest, **context: Any) -> ChatReply:
        """Ask as a run of the agent `chat`."""
        return await self.door(**context).chat(request)

    def all_down(self) -> None:
        """No model answers any more."""
        for adapter in (self.first, self.second):
            adapter.script.extend(
                LLMUnavailable(f"{adapter.endpoint} hung up", endpoint=adapter.endpoint) for _ in range(500)
            )

    def asked(self) -> dict[str, int]:
        """Requests that reached each model."""
        return {"first": len(self.first.requests), "second": len(self.second.requests)}
