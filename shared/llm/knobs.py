"""What can be tuned about one LLM endpoint."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class LLMKnobs:
    """FLEET_LLM_*: one OpenAI-compatible endpoint, and how long and how wide it may be used."""

    base_url: str = "http://127.0.0.1:8089/v1"
    """Where the endpoint's API lives, with its version path (`…/v1`). Any OpenAI-compatible server."""

    model: str = "smollm2-135m"
    """The model asked for when a request names none."""

    api_key: SecretStr = field(default_factory=lambda: SecretStr("none"))
    """Sent as a bearer token, printed nowhere. Local servers accept anything: the default is a word, no secret."""

    connect_timeout_s: float = 5.0
    """Seconds for TCP and again for TLS; thousands of calls that start at once are let in by turns before it counts."""

    read_timeout_s: float = 60.0
    """Seconds of silence on an open connection. A non-streamed answer is silent until it is complete, so this is
    as long as the total; lower it only for endpoints known to be quick."""

    total_timeout_s: float = 60.0
    """Seconds for the whole call, connection to last byte, when a request brings no `timeout_s` of its own. The
    SDK's own timeouts are per socket operation and never end a body that drips."""

    max_tokens: int = 1024
    """Upper bound on output tokens when a request names none: an unbounded answer is an unbounded bill."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name under which the bound is sent. Compatible servers know `max_tokens`; OpenAI's reasoning models accept
    only `max_completion_tokens`."""

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
        for name in ("connect_timeout_s", "read_timeout_s", "total_timeout_s", "max_tokens", "max_connections"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
