"""Strict reading of a completion: whatever is not a whole answer is an error here, before anyone journals it."""

import json
from collections.abc import Mapping
from typing import Any

from shared.errors import LLMRefused, LLMUnavailable
from shared.llm.messages import ChatReply, ChatRequest, ToolCall, Usage, clean_text

BYTES_PER_TOKEN = 4


def broken_answer(sentence: str, *, endpoint: str, why: str) -> LLMUnavailable:
    """The failure of an endpoint that answered, but with no answer; `why` is a word for metrics."""
    return LLMUnavailable(f"{endpoint} {sentence}", endpoint=endpoint, broken=why)


def decode_body(body: bytes, *, content_type: str, endpoint: str) -> dict[str, Any]:
    """The JSON object in a body.

    Raises: LLMUnavailable for HTML (a proxy's error page served as 200), broken or cut JSON, or no object.
    """
    if not body.strip():
        raise broken_answer("answered with an empty body", endpoint=endpoint, why="empty")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.split(";")[0] or "no content type"
        raise broken_answer(
            f"answered with a body that is not JSON ({kind}, {len(body)} bytes)", endpoint=endpoint, why="not_json"
        ) from error
    if not isinstance(data, dict):
        raise broken_answer("answered with JSON that is no object", endpoint=endpoint, why="no_object")
    return data


def read_completion(
    data: Mapping[str, Any], *, request: ChatRequest, asked_model: str, endpoint: str, seconds: float
) -> ChatReply:
    """Turn a decoded completion into a reply.

    Raises:
        LLMUnavailable: no choices, no message, a failed choice, or an answer that says nothing.
        LLMRefused: the answer was filtered away, or `max_tokens` was spent before the first character.
    """
    choice = _first_choice(data, endpoint=endpoint)
    message = choice.get("message")
    finish_reason = choice.get("finish_reason") or "unknown"
    if not isinstance(message, dict) or not isinstance(finish_reason, str) or finish_reason == "error":
        raise broken_answer("answered with a choice that is no message", endpoint=endpoint, why="no_message")
    text = content_text(message)
    tool_calls = _tool_calls(message, endpoint=endpoint)
    if not text and not tool_calls:
        raise _nothing_said(finish_reason, endpoint=endpoint)
    model = data.get("model")
    return ChatReply(
        text=text,
        tool_calls=tool_calls,
        model=model if isinstance(model, str) and model else asked_model,
        endpoint=endpoint,
        usage=usage_of(data) or estimated_usage(request, written=text + "".join(call.arguments for call in tool_calls)),
        finish_reason=finish_reason,
        seconds=seconds,
    )


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message or of a delta; a model's refusal is what it says."""
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):  # content parts: some servers separate reasoning from the answer this way
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return clean_text(content) if isinstance(content, str) else ""


def arguments_text(arguments: Any) -> str:
    """A tool call's arguments as JSON text: some servers send the object instead."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def estimate_tokens(text: str) -> int:
    """A rough count for when nobody counted: four bytes a token (four letters, or a bit over one Chinese character)."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def estimated_usage(request: ChatRequest, *, written: str) -> Usage:
    """What a call cost when the endpoint does not say: everything that was sent, and what came back."""
    sent = [message.content for message in request.messages]
    sent += [call.arguments for message in request.messages for call in message.tool_calls]
    sent += [json.dumps(tool.to_json()) for tool in request.tools]
    return Usage(sum(map(estimate_tokens, sent)), estimate_tokens(written), estimated=True)


def usage_of(data: Mapping[str, Any]) -> Usage | None:
    """The endpoint's own count, or None when it gives none that can be believed."""
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(read, int) and isinstance(written, int) and min(read, written) >= 0:
        return Usage(read, written)
    return None


def _first_choice(data: Mapping[str, Any], *, endpoint: str) -> dict[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise broken_answer("answered without a choice", endpoint=endpoint, why="no_choices")
    return choices[0]


def _tool_calls(message: Mapping[str, Any], *, endpoint: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or []
    try:
        return tuple(_tool_call(call, position=position) for position, call in enumerate(calls))
    except (KeyError, TypeError, AttributeError) as error:
        raise broken_answer("answered with a malformed tool call", endpoint=endpoint, why="tool_call") from error


def _tool_call(call: Mapping[str, Any], *, position: int) -> ToolCall:
    function = call["function"]
    arguments = arguments_text(function.get("arguments") or "{}")
    return ToolCall(
        id=str(call.get("id") or f"call_{position}"), name=str(function["name"]), arguments=clean_text(arguments)
    )


def _nothing_said(finish_reason: str, *, endpoint: str) -> LLMUnavailable | LLMRefused:
    if finish_reason == "content_filter":
        return LLMRefused(f"{endpoint} filtered the answer away", endpoint=endpoint, subject="content")
    if finish_reason == "length":
        sentence = f"{endpoint} spent max_tokens before the first character: raise max_tokens"
        return LLMRefused(sentence, endpoint=endpoint)
    return broken_answer("answered nothing", endpoint=endpoint, why="nothing_said")
