"""Strict reading of a completion: whatever is not a whole answer is an error here, before anyone journals it."""

import json
from collections.abc import Mapping
from typing import Any

from shared.errors import LLMRefused, LLMUnavailable
from shared.llm.messages import ChatReply, ChatRequest, ToolCall, Usage, clean_text

CHARACTERS_PER_TOKEN = 4


def decode_body(body: bytes, *, content_type: str, endpoint: str) -> dict[str, Any]:
    """The JSON object in a body.

    Raises: LLMUnavailable for HTML (a proxy's error page served as 200), broken or cut JSON, or no object.
    """
    if not body.strip():
        raise LLMUnavailable(f"{endpoint} answered with an empty body", endpoint=endpoint)
    try:
        data = json.loads(body)
    except ValueError as error:
        kind = content_type.split(";")[0] or "no content type"
        raise LLMUnavailable(
            f"{endpoint} answered with a body that is not JSON ({kind}, {len(body)} bytes)", endpoint=endpoint
        ) from error
    if not isinstance(data, dict):
        raise LLMUnavailable(f"{endpoint} answered with JSON that is no object", endpoint=endpoint)
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
        raise LLMUnavailable(f"{endpoint} answered with a choice that is no message", endpoint=endpoint)
    text = _text(message)
    tool_calls = _tool_calls(message, endpoint=endpoint)
    if not text and not tool_calls:
        _refuse_empty(finish_reason, endpoint=endpoint)
    model = data.get("model")
    return ChatReply(
        text=text,
        tool_calls=tool_calls,
        model=model if isinstance(model, str) and model else asked_model,
        endpoint=endpoint,
        usage=_usage(data, request=request, written=text + "".join(call.arguments for call in tool_calls)),
        finish_reason=finish_reason,
        seconds=seconds,
    )


def estimate_tokens(text: str) -> int:
    """A rough count for when nobody counted: four characters a token, never zero for a text that is not empty."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _first_choice(data: Mapping[str, Any], *, endpoint: str) -> dict[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise LLMUnavailable(f"{endpoint} answered without a choice", endpoint=endpoint)
    return choices[0]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):  # content parts: some servers separate reasoning from the answer this way
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return clean_text(content) if isinstance(content, str) else ""


def _tool_calls(message: Mapping[str, Any], *, endpoint: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or []
    try:
        return tuple(_tool_call(call, position=position) for position, call in enumerate(calls))
    except (KeyError, TypeError, AttributeError) as error:
        raise LLMUnavailable(f"{endpoint} answered with a malformed tool call", endpoint=endpoint) from error


def _tool_call(call: Mapping[str, Any], *, position: int) -> ToolCall:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    if not isinstance(arguments, str):  # some servers send the object instead of its JSON text
        arguments = json.dumps(arguments)
    return ToolCall(
        id=str(call.get("id") or f"call_{position}"), name=str(function["name"]), arguments=clean_text(arguments)
    )


def _refuse_empty(finish_reason: str, *, endpoint: str) -> None:
    if finish_reason == "content_filter":
        raise LLMRefused(f"{endpoint} filtered the answer away", endpoint=endpoint)
    if finish_reason == "length":
        raise LLMRefused(f"{endpoint} spent max_tokens before the first character: raise max_tokens", endpoint=endpoint)
    raise LLMUnavailable(f"{endpoint} answered nothing", endpoint=endpoint)


def _usage(data: Mapping[str, Any], *, request: ChatRequest, written: str) -> Usage:
    usage = data.get("usage")
    if isinstance(usage, dict):
        input_tokens, output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(input_tokens, int) and isinstance(output_tokens, int) and min(input_tokens, output_tokens) >= 0:
            return Usage(input_tokens, output_tokens)
    read = sum(estimate_tokens(message.content) for message in request.messages)
    return Usage(input_tokens=read, output_tokens=estimate_tokens(written), estimated=True)
