"""The outside edge: what every chat model, guard and fake looks like."""

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
