"""The OpenAI dialect, with what the servers that are compatible with it do differently."""

from collections.abc import Mapping
from typing import Any, Literal

from shared.llm.answer import arguments_text, content_text, estimate_tokens
from shared.llm.dialect import NOTHING, Fold, Heard
from shared.llm.messages import ChatRequest, Json, Message, ToolSpec


class OpenAIDialect:
    """Chat completions. See `Dialect`."""

    def __init__(
        self, *, max_tokens_field: Literal["max_tokens", "max_completion_tokens"], stream_usage: bool, extra: Json
    ) -> None:
        self._max_tokens_field = max_tokens_field
        self._stream_usage = stream_usage
        self._extra = extra

    def body(self, request: ChatRequest, *, model: str, max_tokens: int, stream: bool) -> Json:
        """The request's JSON."""
        body: Json = {
            "model": model,
            "messages": [_message(message) for message in request.messages],
            self._max_tokens_field: max_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if stream:
            body["stream"] = True
            if self._stream_usage:
                body["stream_options"] = {"include_usage": True}
        return {**body, **self._extra}

    def completion(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is."""
        return data

    def fold(self) -> Fold:
        """An empty fold."""
        return ChunkFold()


class ChunkFold:
    """Chunks on their way to a completion; only the first choice counts."""

    def __init__(self) -> None:
        self.is_whole = False
        self.is_over = False
        self._text: list[str] = []
        self._calls: list[Json] = []
        self._by_index: dict[int, Json] = {}
        self._finish_reason: Any = None
        self._model: Any = None
        self._usage: Any = None

    def add(self, data: Mapping[str, Any]) -> Heard:
        """Take one chunk."""
        self._model = data.get("model") or self._model
        self._usage = data.get("usage") or self._usage
        choices = [choice for choice in data.get("choices") or () if choice.get("index", 0) == 0]
        return self._choice(choices[0]) if choices else NOTHING

    def completion(self) -> Json:
        """What was heard so far."""
        message: Json = {"role": "assistant", "content": "".join(self._text)}
        if self._calls:
            message["tool_calls"] = [
                {"id": call["id"], "function": {"name": call["name"], "arguments": "".join(call["arguments"])}}
                for call in self._calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return {"model": self._model, "choices": [choice], "usage": self._usage}

    def _choice(self, choice: Mapping[str, Any]) -> Heard:
        delta = choice.get("delta") or {}
        text = content_text(delta)
        if text:
            self._text.append(text)
        # Thinking is progress and is paid for, but it is not the answer.
        written = text + str(delta.get("reasoning_content") or delta.get("reasoning") or "")
        for call in delta.get("tool_calls") or ():
            written += self._call(call)
        if choice.get("finish_reason"):
            self._finish_reason, self.is_whole = choice["finish_reason"], True
        return Heard(text, max(1, estimate_tokens(written))) if written or self.is_whole else NOTHING

    def _call(self, piece: Mapping[str, Any]) -> str:
        """A piece belongs to the call of its index; servers without indexes send whole calls, or go on the last."""
        function = piece.get("function") or {}
        arguments = arguments_text(function.get("arguments") or "")
        index = piece.get("index")
        call = self._by_index.get(index) if index is not None else self._last_call(piece)
        if call is None:
            call = {"id": None, "name": "", "arguments": []}
            self._calls.append(call)
            if index is not None:
                self._by_index[index] = call
        call["id"] = call["id"] or piece.get("id")
        call["name"] = call["name"] or function.get("name") or ""
        call["arguments"].append(arguments)
        return f"{function.get('name') or ''}{arguments}"

    def _last_call(self, piece: Mapping[str, Any]) -> Json | None:
        is_new = piece.get("id") is not None or (piece.get("function") or {}).get("name")
        return None if is_new or not self._calls else self._calls[-1]


def _message(message: Message) -> Json:
    data: Json = {"role": message.role, "content": message.content}
    if message.tool_calls:
        data["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        data["tool_call_id"] = message.tool_call_id
    return data


def _tool(tool: ToolSpec) -> Json:
    return {"type": "function", "function": tool.to_json()}
