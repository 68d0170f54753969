"""The chat port over any OpenAI-compatible endpoint: one HTTP request a call, bounded in time, strictly read."""

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI

from shared.clock import Clock, SystemClock
from shared.errors import FleetError, LLMTimeout, LLMUnavailable
from shared.llm.answer import decode_body, read_completion
from shared.llm.failures import failure_for_status, failure_in_body
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest, Json, Message, ToolSpec
from shared.llm.transport import PooledTransport


class OpenAIChat:
    """A `ChatPort`. Build one per process and endpoint (a client costs tens of milliseconds), close it at the end."""

    def __init__(self, knobs: LLMKnobs, *, clock: Clock | None = None) -> None:
        self._knobs = knobs
        self._clock = clock or SystemClock()
        self.endpoint = urlsplit(knobs.base_url).netloc.rpartition("@")[2]
        timeouts = httpx2.Timeout(knobs.read_timeout_s, connect=knobs.connect_timeout_s, pool=None)
        self._transport = PooledTransport(
            max_connections=knobs.max_connections,
            keepalive_s=knobs.keepalive_s,
            stall_s=knobs.connect_timeout_s,
            proxy_url=knobs.proxy_url,
        )
        self._client = AsyncOpenAI(
            base_url=knobs.base_url,
            api_key=knobs.api_key.get_secret_value(),
            max_retries=0,  # whoever retries stands in front of the port; two retrying layers multiply
            timeout=timeouts,
            http_client=httpx2.AsyncClient(
                transport=self._transport,
                timeout=timeouts,
                trust_env=False,
                follow_redirects=False,  # a redirected POST turns into a GET or takes the key to another host
            ),
        )
        # The SDK fills these from the environment of the process and would send them to any endpoint.
        self._client.organization = None
        self._client.project = None

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Ask once; see `ChatPort.chat`."""
        model = request.model or self._knobs.model
        timeout_s = request.timeout_s if request.timeout_s is not None else self._knobs.total_timeout_s
        started = self._clock.monotonic()
        response = await self._post(self._body(request, model=model), timeout_s=timeout_s)
        data = decode_body(
            response.content, content_type=response.headers.get("content-type", ""), endpoint=self.endpoint
        )
        failure = failure_in_body(data, headers=response.headers, endpoint=self.endpoint, now=self._clock.now())
        if failure is not None:
            raise self._without_key(failure)
        return read_completion(
            data,
            request=request,
            asked_model=model,
            endpoint=self.endpoint,
            seconds=round(self._clock.monotonic() - started, 6),
        )

    async def aclose(self) -> None:
        """Close every connection; calls in flight fail."""
        await self._client.close()

    async def _post(self, body: Json, *, timeout_s: float) -> httpx2.Response:
        # `from None` everywhere: the SDK's errors hold the request, and the request holds the key.
        try:
            async with asyncio.timeout(timeout_s), self._transport.starting():
                return await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except TimeoutError:
            raise self._timeout("total", waited_s=timeout_s) from None
        except APITimeoutError as error:
            raise self._timeout(_phase(error), waited_s=None) from None
        except APIStatusError as error:
            raise self._status_failure(error.status_code, headers=error.response.headers, detail=error.body) from None
        except APIConnectionError as error:
            cause = type(error.__cause__).__name__
            raise LLMUnavailable(
                f"{self.endpoint} could not be reached or hung up ({cause})", endpoint=self.endpoint, cause=cause
            ) from None

    def _body(self, request: ChatRequest, *, model: str) -> Json:
        body: Json = {
            "model": model,
            "messages": [_message(message) for message in request.messages],
            self._knobs.max_tokens_field: request.max_tokens or self._knobs.max_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        return body

    def _timeout(self, phase: str, *, waited_s: float | None) -> LLMTimeout:
        limit = f" within {waited_s:g} s" if waited_s is not None else ""
        return LLMTimeout(
            f"{self.endpoint} gave no complete answer{limit} ({phase})", endpoint=self.endpoint, phase=phase
        )

    def _status_failure(self, status: int, *, headers: Mapping[str, str], detail: Any) -> FleetError:
        return self._without_key(
            failure_for_status(status, headers=headers, detail=detail, endpoint=self.endpoint, now=self._clock.now())
        )

    def _without_key(self, failure: FleetError) -> FleetError:
        """Endpoints quote the key they refuse; the ledger and the logs must not."""
        key = self._knobs.api_key.get_secret_value()
        if len(key) >= 8 and key in failure.message:
            failure.message = failure.message.replace(key, "***")
            failure.args = (failure.message,)
        return failure


def _phase(error: APITimeoutError) -> str:
    """Which socket operation was too slow: connect, read, write or pool."""
    return type(error.__cause__).__name__.removesuffix("Timeout").lower()


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
