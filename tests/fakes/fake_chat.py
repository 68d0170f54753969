"""A chat model that says what it is told to, and remembers what it was asked."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Self

from shared.errors import FleetError
from shared.llm.answer import estimate_tokens
from shared.llm.call_context import CallContext
from shared.llm.messages import ChatReply, ChatRequest, ToolCall, Usage


class FakeChat:
    """A `ChatPort` and a `StreamPort`. Scripted answers come first, in order; then it echoes the last message."""

    def __init__(self, *script: str | ToolCall | ChatReply | FleetError) -> None:
        self.script = deque(script)
        self.requests: list[ChatRequest] = []
        self.release: asyncio.Event | None = None
        """When set, an answer waits for it: a call that is in flight for as long as the test wants."""
        self.must_act = False
        self.token_price: float | None = None
        self.contexts: list[CallContext] = []
        """Of every run that has come to it."""

    def for_run(self, context: CallContext) -> Self:
        """A run's own door: this one."""
        self.contexts.append(context)
        self.must_act = bool(context.must_act)
        return self

    def sorry(self, reason: str) -> str:
        """Words for what was not done."""
        return f"could not: {reason}"

    def price(self, request: ChatRequest, usage: Usage) -> float | None:
        """What a call costs."""
        return None if self.token_price is None else self.token_price * (usage.input_tokens + usage.output_tokens)

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Say the next line of the script."""
        self.requests.append(request)
        if self.release is not None:
            await self.release.wait()
        line = self.script.popleft() if self.script else f"echo: {request.messages[-1].content}"
        if isinstance(line, FleetError):
            raise line
        if isinstance(line, ChatReply):
            return line
        text = line if isinstance(line, str) else ""
        return ChatReply(
            text=text,
            tool_calls=(line,) if isinstance(line, ToolCall) else (),
            model=request.model or "fake",
            endpoint="fake",
            usage=Usage(sum(estimate_tokens(one.content) for one in request.messages), estimate_tokens(text)),
            finish_reason="stop" if isinstance(line, str) else "tool_calls",
            seconds=0.0,
        )

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        """Say the next line word by word."""
        reply = await self.chat(request)
        for number, word in enumerate(reply.text.split(" ")):
            if piece := word if number == 0 else f" {word}":
                yield piece
        yield reply
