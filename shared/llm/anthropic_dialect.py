"""The Anthropic dialect (Messages API, version 2023-06-01) as pure translation; needs no SDK."""

import json
from collections.abc import Mapping
from typing import Any

from shared.llm.answer import estimate_tokens
from shared.llm.dialect import NOTHING, Fold, Heard
from shared.llm.messages import ChatRequest, Json, Message, ToolCall, clean_text

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Why it stopped, in the words that every other endpoint uses; others pass through as they are."""


class AnthropicDialect:
    """Messages. See `Dialect`."""

    def __init__(self, *, extra: Json) -> None:
        self._extra = extra

    def body(self, request: ChatRequest, *, model: str, max_tokens: int, stream: bool) -> Json:
        """The request's JSON: system messages apart, tool results within user turns, turns of one side merged."""
        body: Json = {"model": model, "max_tokens": max_tokens, "messages": _turns(request.messages)}
        if system := "\n\n".join(one.content for one in request.messages if one.role == "system" and one.content):
            body["system"] = system
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
                for tool in request.tools
            ]
        if stream:
            body["stream"] = True
        return {**body, **self._extra}

    def completion(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message as a completion; what is no message becomes a completion without choices."""
        blocks, stop_reason = data.get("content"), data.get("stop_reason")
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            return {"choices": [], "usage": _usage(data.get("usage"))}
        text = "".join(block.get("text") or "" for block in blocks if block.get("type") == "text")
        calls = [_function(block, block.get("input")) for block in blocks if block.get("type") == "tool_use"]
        return _completion(text, calls, model=data.get("model"), stop_reason=stop_reason, usage=data.get("usage"))

    def fold(self) -> Fold:
        """An empty fold."""
        return BlockFold()


class BlockFold:
    """Events on their way to a message."""

    def __init__(self) -> None:
        self.is_whole = False
        self.is_over = False
        self._text: list[str] = []
        self._calls: dict[int, tuple[Mapping[str, Any], list[str]]] = {}
        self._stop_reason: Any = None
        self._model: Any = None
        self._usage: Json = {}

    def add(self, data: Mapping[str, Any]) -> Heard:
        """Take one event."""
        match data.get("type"):
            case "message_start":
                self._model = data["message"].get("model")
                self._usage |= data["message"].get("usage") or {}
            case "content_block_start" if data["content_block"].get("type") == "tool_use":
                self._calls[data["index"]] = (data["content_block"], [])
                return Heard(tokens=1)
            case "content_block_delta":
                return self._delta(data["index"], data["delta"])
            case "message_delta":
                self._stop_reason = data["delta"].get("stop_reason") or self._stop_reason
                self._usage |= {name: count for name, count in (data.get("usage") or {}).items() if count is not None}
                self.is_whole = self._stop_reason is not None
                return Heard(tokens=1)
            case "message_stop":
                self.is_over = True
        return NOTHING

    def completion(self) -> Json:
        """What was heard so far."""
        calls = [_function(block, "".join(pieces)) for block, pieces in self._calls.values()]
        return _completion(
            "".join(self._text), calls, model=self._model, stop_reason=self._stop_reason, usage=self._usage
        )

    def _delta(self, index: int, delta: Mapping[str, Any]) -> Heard:
        match delta.get("type"):
            case "text_delta":
                text = clean_text(delta["text"])
                self._text.append(text)
                return Heard(text, max(1, estimate_tokens(text)))
            case "input_json_delta":
                self._calls[index][1].append(delta["partial_json"])
                return Heard(tokens=max(1, estimate_tokens(delta["partial_json"])))
            case "thinking_delta":
                return Heard(tokens=max(1, estimate_tokens(delta.get("thinking") or "")))
        return NOTHING


def _turns(messages: tuple[Message, ...]) -> list[Json]:
    turns: list[Json] = []
    for message in messages:
        if message.role == "system":
            continue
        role, blocks = _blocks(message)
        if not blocks:  # empty text is refused, and says nothing
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> tuple[str, list[Json]]:
    if message.role == "tool":
        result: Json = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
        return "user", [result]
    blocks: list[Json] = [{"type": "text", "text": message.content}] if message.content.strip() else []
    return message.role, blocks + [_tool_use(call) for call in message.tool_calls]


def _tool_use(call: ToolCall) -> Json:
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:  # the model's own slip, from an earlier turn: told back as it was
        arguments = None
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.name,
        "input": arguments if isinstance(arguments, dict) else {"arguments": call.arguments},
    }


def _function(block: Mapping[str, Any], arguments: Any) -> Json:
    return {"id": block.get("id"), "function": {"name": block["name"], "arguments": arguments}}


def _completion(text: str, calls: list[Json], *, model: Any, stop_reason: Any, usage: Any) -> Json:
    finish_reason = FINISH_REASONS.get(stop_reason, stop_reason) if isinstance(stop_reason, str) else stop_reason
    message = {"role": "assistant", "content": text, "tool_calls": calls}
    return {
        "model": model,
        "choices": [{"message": message, "finish_reason": finish_reason}],
        "usage": _usage(usage),
    }


def _usage(usage: Any) -> Json | None:
    """Cached input is input: it was read and it is billed, if for less."""
    if not isinstance(usage, dict):
        return None
    cached = [usage.get(name) or 0 for name in ("cache_creation_input_tokens", "cache_read_input_tokens")]
    read, written = usage.get("input_tokens"), usage.get("output_tokens")
    if not isinstance(read, int) or not all(isinstance(count, int) for count in cached):
        return None
    return {"prompt_tokens": read + sum(cached), "completion_tokens": written}
