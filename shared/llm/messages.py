"""The values that cross the chat port: frozen, slotted, and JSON in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
Json = dict[str, Any]


def clean_text(text: str) -> str:
    """Text that PostgreSQL and JSON writers accept: no NUL characters, no lone surrogates.

    Models do emit both (as JSON escapes), and either one fails the INSERT of an answer that is already paid for.
    """
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants to run; `arguments` is the model's own JSON text, not yet checked by anyone."""

    id: str
    name: str
    arguments: str

    def to_json(self) -> Json:
        """As a plain dict."""
        return {"id": self.id, "name": self.name, "arguments": self.arguments}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave."""
        return cls(id=data["id"], name=data["name"], arguments=data["arguments"])


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `tool_call_id` belongs to role `tool`, `tool_calls` to role `assistant`."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def to_json(self) -> Json:
        """As a plain dict, without the keys that are empty."""
        data: Json = {"role": self.role, "content": self.content}
        if self.tool_calls:
            data["tool_calls"] = [call.to_json() for call in self.tool_calls]
        if self.tool_call_id is not None:
            data["tool_call_id"] = self.tool_call_id
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave.

        Raises: ValueError when the role is none of `ROLES`.
        """
        if data["role"] not in ROLES:
            raise ValueError(f"unknown role {data['role']!r}")
        return cls(
            role=data["role"],
            content=data["content"],
            tool_calls=tuple(ToolCall.from_json(call) for call in data.get("tool_calls", ())),
            tool_call_id=data.get("tool_call_id"),
        )


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool offered to the model; `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def to_json(self) -> Json:
        """As a plain dict."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave."""
        return cls(name=data["name"], description=data["description"], parameters=data["parameters"])


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question to a model.

    `model`, `max_tokens` and `timeout_s` fall back to the adapter's knobs when None; `temperature` None means the
    endpoint's own default (some models refuse any other).
    """

    messages: tuple[Message, ...]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    tools: tuple[ToolSpec, ...] = ()
    timeout_s: float | None = None

    def to_json(self) -> Json:
        """As a plain dict."""
        return {**self.question_json(), "timeout_s": self.timeout_s}

    def question_json(self) -> Json:
        """What the model is asked, without how long the caller waits: the part to fingerprint.

        A replayed step has less time left than its first run and still asks the same question.
        """
        return {
            "messages": [message.to_json() for message in self.messages],
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "tools": [tool.to_json() for tool in self.tools],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` or `question_json` gave."""
        return cls(
            messages=tuple(Message.from_json(message) for message in data["messages"]),
            model=data["model"],
            max_tokens=data["max_tokens"],
            temperature=data["temperature"],
            tools=tuple(ToolSpec.from_json(tool) for tool in data["tools"]),
            timeout_s=data.get("timeout_s"),
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; `estimated` when the endpoint did not say and the numbers are four characters a token."""

    input_tokens: int
    output_tokens: int
    estimated: bool = False

    def to_json(self) -> Json:
        """As a plain dict."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "estimated": self.estimated,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave."""
        return cls(data["input_tokens"], data["output_tokens"], data["estimated"])


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A complete, checked answer.

    `endpoint` names who answered (never a credential), `seconds` how long the call took on the first run (a replay
    returns the same number). `level` is how degraded the answer is (L0: the endpoint that was asked) and `reasons` why;
    `cached_at` (ISO 8601) and `age_s` are of a cached answer, `could_not_act` marks an apology in place of an action,
    `cost` is money in the configured currency (None: no price is declared).
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    model: str
    endpoint: str
    usage: Usage
    finish_reason: str
    seconds: float
    level: str = "L0"
    reasons: tuple[str, ...] = ()
    cached_at: str | None = None
    age_s: float | None = None
    could_not_act: bool = False
    cost: float | None = None

    def to_json(self) -> Json:
        """As a plain dict."""
        return {
            "text": self.text,
            "tool_calls": [call.to_json() for call in self.tool_calls],
            "model": self.model,
            "endpoint": self.endpoint,
            "usage": self.usage.to_json(),
            "finish_reason": self.finish_reason,
            "seconds": self.seconds,
            "level": self.level,
            "reasons": list(self.reasons),
            "cached_at": self.cached_at,
            "age_s": self.age_s,
            "could_not_act": self.could_not_act,
            "cost": self.cost,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave, also in a journal that was written before the later fields existed."""
        return cls(
            text=data["text"],
            tool_calls=tuple(ToolCall.from_json(call) for call in data["tool_calls"]),
            model=data["model"],
            endpoint=data["endpoint"],
            usage=Usage.from_json(data["usage"]),
            finish_reason=data["finish_reason"],
            seconds=data["seconds"],
            level=data["level"],
            reasons=tuple(data.get("reasons", ())),
            cached_at=data.get("cached_at"),
            age_s=data.get("age_s"),
            could_not_act=data.get("could_not_act", False),
            cost=data.get("cost"),
        )

    def as_message(self) -> Message:
        """The answer as the next turn of the conversation."""
        return Message("assistant", self.text, tool_calls=self.tool_calls)
