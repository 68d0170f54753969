"""The outside edge: what every chat model, guard and fake looks like."""

from collections.abc import AsyncGenerator
from typing import Protocol

from shared.llm.messages import ChatReply, ChatRequest


class ChatPort(Protocol):
    """Anything that answers a chat request."""

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Ask once.

        Cancelling the awaiting task ends the request; nothing keeps running behind it.

        Raises:
            LLMTimeout: no complete answer in time.
            LLMRateLimited: the endpoint asked to slow down; `retry_after_s` when it said for how long.
            LLMUnavailable: down, overloaded, unreachable, or the answer is not a valid completion.
            LLMRefused: the same request will be refused again.
        """


class StreamPort(Protocol):
    """Anything that answers piece by piece."""

    def stream(self, request: ChatRequest) -> AsyncGenerator[str | ChatReply, None]:
        """Ask once and hand out the text as it is written.

        Iterate under `contextlib.aclosing`: leaving the block ends the request. Time that the caller spends between
        two pieces counts against the total alone, never against the endpoint's first-token or idle limit.

        Yields: Pieces of text, and as the last item the whole checked reply; its text is the pieces joined.
        Raises: What `ChatPort.chat` raises; `context["written"]` counts the characters that were already handed out.
        """


class Adapter(ChatPort, StreamPort, Protocol):
    """One endpoint behind one dialect; `endpoint` is its name in replies and errors."""

    @property
    def endpoint(self) -> str:
        """The name."""

    async def aclose(self) -> None:
        """Close every connection; calls in flight fail."""
