"""What can be tuned about one LLM endpoint."""

import json
from dataclasses import dataclass, field
from typing import Literal

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class LLMKnobs:
    """FLEET_LLM_*: one OpenAI-compatible endpoint, and how long and how wide it may be used."""

    config: str = ""
    """Path of the YAML file that declares endpoints, models, prices, limits, budgets and chains. Unset: the one
    endpoint and model of the knobs below. With a file, they are not used."""

    base_url: str = "http://127.0.0.1:8089/v1"
    """Where the endpoint's API lives, with its version path (`…/v1`); a query (Azure's `?api-version=…`) is sent with
    every request. Any OpenAI-compatible server, or `https://api.anthropic.com` for that dialect."""

    dialect: Literal["openai", "anthropic"] = "openai"
    """What the endpoint speaks; OpenAI's is also that of Azure, vLLM, Ollama, DeepSeek, DashScope and most gateways."""

    model: str = "smollm2-135m"
    """The model asked for when a request names none."""

    api_key: SecretStr = field(default_factory=lambda: SecretStr("none"))
    """Sent as a bearer token, printed nowhere. Local servers accept anything: the default is a word, no secret."""

    connect_timeout_s: float = 5.0
    """Seconds for TCP and again for TLS; thousands of calls that start at once are let in by turns before it counts."""

    read_timeout_s: float = 60.0
    """Seconds of silence on an open connection. A non-streamed answer is silent until it is complete, so this is
    as long as the total; lower it only for endpoints known to be quick."""

    first_token_timeout_s: float = 15.0
    """Seconds from the start of a streamed call to the first token. Queues announce themselves with comments, empty
    events or pings for minutes (DeepSeek: up to ten); none of them counts."""

    idle_timeout_s: float = 20.0
    """Seconds between two tokens of a stream; comments, empty events and pings do not count."""

    min_tokens_per_s: float = 1.0
    """A stream slower than this over `throughput_window_s` is given up: it never idles and never ends. Hosted models
    write 20 to 200 a second, people read five; 0 switches the floor off."""

    throughput_window_s: float = 20.0
    """Seconds over which the floor is measured: long enough for a model that pauses to think."""

    total_timeout_s: float = 60.0
    """Seconds for the whole call, connection to last byte, when a request brings no `timeout_s` of its own. The
    SDK's own timeouts are per socket operation and never end a body that drips."""

    max_tokens: int = 1024
    """Upper bound on output tokens when a request names none: an unbounded answer is an unbounded bill."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name under which the bound is sent. Compatible servers know `max_tokens`; OpenAI's reasoning models accept
    only `max_completion_tokens`."""

    stream_answers: bool = False
    """Whether `chat` streams behind the scenes and collects: a stalled endpoint is noticed after
    `first_token_timeout_s` instead of `total_timeout_s`, for about 20 µs of CPU per token. Some models answer no other
    way (DashScope's thinking models)."""

    stream_usage: bool = True
    """Whether a stream is asked for its token counts (`stream_options`). Off for servers that refuse the field: usage
    is then estimated."""

    key_header: Literal["authorization", "api-key"] = "authorization"
    """Where the key goes: a bearer token, or Azure's own header. The Anthropic dialect has its own and ignores this."""

    extra_body: str = "{}"
    """A JSON object laid over every request body: what one provider wants and no other knows
    (`{"enable_thinking": false}`)."""

    max_connections: int = 4096
    """Calls in flight per process; the one past it waits for a free connection within its own timeout. Each is one
    HTTP/1.1 connection, so this many file descriptors. The SDK's default of 1000 (100 kept alive) would silently
    queue a worker with more slots than that."""

    keepalive_s: float = 4.0
    """Seconds an idle connection is kept. Below the 5 s after which uvicorn (vLLM and friends) hangs up, so that a
    request is not sent into a connection that is being closed."""

    proxy_url: str | None = None
    """HTTP proxy for this endpoint. Proxies named in the environment are not used: a loopback model server behind a
    corporate proxy variable is a worker that cannot answer."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        for name in (
            "connect_timeout_s",
            "read_timeout_s",
            "first_token_timeout_s",
            "idle_timeout_s",
            "throughput_window_s",
            "total_timeout_s",
            "max_tokens",
            "max_connections",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.min_tokens_per_s < 0:
            raise ValueError("min_tokens_per_s must not be negative")
        try:
            is_object = isinstance(json.loads(self.extra_body), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ValueError("extra_body must be a JSON object")
