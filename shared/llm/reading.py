"""From a response or its events to a checked reply: no waiting, no sockets, only reading."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx2

from shared.clock import Clock
from shared.errors import FleetError
from shared.llm.answer import broken_answer, decode_body, estimated_usage, read_completion, usage_of
from shared.llm.dialect import Dialect, Fold, Heard
from shared.llm.failures import failure_for_status, failure_in_body
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest
from shared.llm.sse import Event, EventReader, EventTooLong

WRONG_SHAPE = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


class Reader:
    """Reads what one endpoint answers."""

    def __init__(self, knobs: LLMKnobs, *, dialect: Dialect, endpoint: str, clock: Clock) -> None:
        self._endpoint = endpoint
        self._host = httpx2.URL(knobs.base_url).host
        self._key = knobs.api_key
        self._dialect = dialect
        self._clock = clock

    def reply(self, response: httpx2.Response, *, request: ChatRequest, model: str, seconds: float) -> ChatReply:
        """The answer in a body that has been read.

        Raises: LLMUnavailable, LLMRefused, LLMRateLimited or LLMTimeout for a 200 that is none.
        """
        kind = response.headers.get("content-type", "")
        data = decode_body(response.content, content_type=kind, endpoint=self._endpoint)
        if (failure := self._failure_in(data, headers=response.headers)) is not None:
            raise failure
        try:
            completion = self._dialect.completion(data)
        except WRONG_SHAPE as error:
            raise self._broken("answered in another dialect", why="shape") from error
        return self._checked(completion, request=request, model=model, seconds=seconds)

    def status_failure(self, response: httpx2.Response) -> FleetError:
        """The failure behind a status that is no success; the body has been read."""
        try:
            detail: Any = json.loads(response.content)
        except (ValueError, RecursionError):
            detail = response.text.strip()
        return failure_for_status(
            response.status_code,
            headers=response.headers,
            detail=detail,
            endpoint=self._endpoint,
            now=self._clock.now(),
            host=self._host,
        )

    def events(self, reader: EventReader, block: bytes | None) -> list[Event]:
        """The events that a block completes; None is the end of the stream.

        Raises: LLMUnavailable when the stream is none.
        """
        try:
            return reader.end() if block is None else reader.feed(block)
        except EventTooLong as error:
            raise self._broken(f"sent {error}", why="too_long") from None

    def add(self, fold: Fold, event: Event, *, headers: Mapping[str, str]) -> Heard:
        """Take one event.

        Raises: what the event says (an error in the middle of a stream), LLMUnavailable when it says nothing readable.
        """
        try:
            data = json.loads(event.data)
        except (ValueError, RecursionError):
            raise self._broken("sent an event that is not JSON", why="not_json") from None
        if not isinstance(data, dict):
            raise self._broken("sent an event that is no object", why="no_object")
        if event.name == "error" and "error" not in data:
            data = {"error": data}
        if (failure := self._failure_in(data, headers=headers)) is not None:
            raise failure
        try:
            return fold.add(data)
        except WRONG_SHAPE as error:
            raise self._broken("sent an event in another dialect", why="shape") from error

    def end(self, fold: Fold, *, request: ChatRequest, model: str, seconds: float, tokens: int) -> ChatReply:
        """The reply of a stream that has ended.

        Args:
            tokens: What was counted on the way, thinking included, for endpoints that do not say.

        Raises: LLMUnavailable when it ended before the endpoint said why it stopped: half an answer is none.
        """
        if not fold.is_whole:
            after = f"after about {tokens} tokens" if tokens else "before the first token"
            raise self._broken(f"ended its stream {after} without a reason", why="cut" if tokens else "empty_stream")
        try:
            completion = fold.completion()
        except WRONG_SHAPE as error:
            raise self._broken("streamed a malformed answer", why="shape") from error
        reply = self._checked(completion, request=request, model=model, seconds=seconds)
        if not reply.usage.estimated:
            return reply
        return replace(reply, usage=replace(reply.usage, output_tokens=max(tokens, reply.usage.output_tokens)))

    def without_key(self, failure: FleetError) -> FleetError:
        """Endpoints quote the key they refuse; the ledger and the logs must not."""
        key = self._key.get_secret_value()
        if len(key) >= 8 and key in failure.message:
            failure.message = failure.message.replace(key, "***")
            failure.args = (failure.message,)
        return failure

    def _checked(self, completion: Mapping[str, Any], *, request: ChatRequest, model: str, seconds: float) -> ChatReply:
        try:
            return read_completion(
                completion, request=request, asked_model=model, endpoint=self._endpoint, seconds=seconds
            )
        except FleetError as failure:  # the model has worked, if in vain
            usage = usage_of(completion) or estimated_usage(request, written="")
            failure.context["usage"] = usage.to_json()
            raise

    def _failure_in(self, data: Any, *, headers: Mapping[str, str]) -> FleetError | None:
        return failure_in_body(data, headers=headers, endpoint=self._endpoint, now=self._clock.now(), host=self._host)

    def _broken(self, sentence: str, *, why: str) -> FleetError:
        return broken_answer(sentence, endpoint=self._endpoint, why=why)
