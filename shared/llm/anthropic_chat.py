"""The chat port over Anthropic's Messages API; importing this file imports the SDK (77 MB)."""

import json

import httpx2
from anthropic import APIConnectionError, APIStatusError, AsyncAnthropic

from shared.clock import Clock, SystemClock
from shared.llm.anthropic_dialect import AnthropicDialect
from shared.llm.client import http_client, spoken_name, transport_of
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import Json
from shared.llm.wire import OnLimits, WireChat

API_VERSION = "2023-06-01"


class AnthropicChat(WireChat):
    """An `Adapter`. `base_url` may end in `/v1` or not; the path is the SDK's."""

    def __init__(
        self,
        knobs: LLMKnobs,
        *,
        clock: Clock | None = None,
        name: str | None = None,
        on_limits: OnLimits | None = None,
    ) -> None:
        key = knobs.api_key.get_secret_value()
        transport = transport_of(knobs, headers={"x-api-key": key, "anthropic-version": API_VERSION})
        client = AsyncAnthropic(
            base_url=knobs.base_url.rstrip("/").removesuffix("/v1"),
            api_key="added-by-the-transport",
            max_retries=0,  # whoever retries stands in front of the port; two retrying layers multiply
            http_client=http_client(knobs, transport),
        )

        async def send(body: Json, *, stream: bool) -> httpx2.Response:
            try:
                return await client.post("/v1/messages", cast_to=httpx2.Response, body=body, stream=stream)
            except APIStatusError as error:
                return error.response
            except APIConnectionError as error:
                raise (error.__cause__ or httpx2.ConnectError(error.message)) from None

        super().__init__(
            knobs,
            endpoint=name or spoken_name(knobs),
            dialect=AnthropicDialect(extra=json.loads(knobs.extra_body)),
            send=send,
            transport=transport,
            close=client.close,
            clock=clock or SystemClock(),
            on_limits=on_limits,
        )
