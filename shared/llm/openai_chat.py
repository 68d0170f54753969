"""The chat port over any OpenAI-compatible endpoint: one HTTP request a call."""

import json

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from shared.clock import Clock, SystemClock
from shared.llm.client import http_client, spoken_name, transport_of
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import Json
from shared.llm.openai_dialect import OpenAIDialect
from shared.llm.wire import OnLimits, WireChat


class OpenAIChat(WireChat):
    """An `Adapter` for OpenAI, Azure, vLLM, Ollama, DeepSeek, DashScope and whoever else is compatible, by base URL."""

    def __init__(
        self,
        knobs: LLMKnobs,
        *,
        clock: Clock | None = None,
        name: str | None = None,
        on_limits: OnLimits | None = None,
    ) -> None:
        key = knobs.api_key.get_secret_value()
        own = {"api-key": key} if knobs.key_header == "api-key" else {"authorization": f"Bearer {key}"}
        transport = transport_of(knobs, headers=own)
        base_url = httpx2.URL(knobs.base_url)
        client = AsyncOpenAI(
            base_url=base_url.copy_with(query=None),
            default_query=dict(base_url.params),
            api_key="added-by-the-transport",
            max_retries=0,  # whoever retries stands in front of the port; two retrying layers multiply
            http_client=http_client(knobs, transport),
        )

        async def send(body: Json, *, stream: bool) -> httpx2.Response:
            try:
                return await client.post("/chat/completions", cast_to=httpx2.Response, body=body, stream=stream)
            except APIStatusError as error:
                return error.response
            except APIConnectionError as error:
                # Not `from` it: the SDK's errors hold the request, and the request holds the key.
                raise (error.__cause__ or httpx2.ConnectError(error.message)) from None

        super().__init__(
            knobs,
            endpoint=name or spoken_name(knobs),
            dialect=OpenAIDialect(
                max_tokens_field=knobs.max_tokens_field,
                stream_usage=knobs.stream_usage,
                extra=json.loads(knobs.extra_body),
            ),
            send=send,
            transport=transport,
            close=client.close,
            clock=clock or SystemClock(),
            on_limits=on_limits,
        )
