"""How an endpoint is asked and how it answers: pure translation, to and from the OpenAI form of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shared.llm.messages import ChatRequest, Json


@dataclass(frozen=True, slots=True)
class Heard:
    """What one event of a stream brought; `tokens` 0 means that it was no progress (a ping, an empty delta)."""

    text: str = ""
    tokens: int = 0


NOTHING = Heard()


class Fold(Protocol):
    """A stream on its way to a completion.

    Attributes:
        is_whole: The endpoint has said why it stopped writing; a stream that ends earlier was cut.
        is_over: Nothing more will come.
    """

    is_whole: bool
    is_over: bool

    def add(self, data: Mapping[str, Any]) -> Heard:
        """Take one event's JSON object. Raises KeyError, TypeError or AttributeError when it has the wrong shape."""

    def completion(self) -> Json:
        """What was heard so far, in the form of a completion that was not streamed."""


class Dialect(Protocol):
    """One way to speak."""

    def body(self, request: ChatRequest, *, model: str, max_tokens: int, stream: bool) -> Json:
        """The request's JSON."""

    def completion(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """An answer's JSON as an OpenAI completion."""

    def fold(self) -> Fold:
        """An empty fold, for one stream."""
