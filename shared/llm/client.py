"""The HTTP client under an SDK, built the same way for every dialect."""

from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx2

from shared.errors import Misconfigured
from shared.llm.knobs import LLMKnobs
from shared.llm.transport import EndpointTransport


def transport_of(knobs: LLMKnobs, *, headers: Mapping[str, str]) -> EndpointTransport:
    """The connections to one endpoint.

    Raises: Misconfigured when the key cannot be sent in a header, a line break from a file being the usual reason.
    """
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        raise Misconfigured("the API key has characters that no HTTP header takes: remove line breaks and blanks")
    return EndpointTransport(
        max_connections=knobs.max_connections,
        keepalive_s=knobs.keepalive_s,
        stall_s=knobs.connect_timeout_s,
        headers={"accept": "application/json, text/event-stream", "user-agent": "agent-fleet", **headers},
        proxy_url=knobs.proxy_url,
    )


def http_client(knobs: LLMKnobs, transport: EndpointTransport) -> httpx2.AsyncClient:
    """A client that listens to nothing but its arguments."""
    return httpx2.AsyncClient(
        transport=transport,
        timeout=httpx2.Timeout(knobs.read_timeout_s, connect=knobs.connect_timeout_s, pool=None),
        trust_env=False,
        follow_redirects=False,  # a redirected POST turns into a GET or takes the key to another host
    )


def spoken_name(knobs: LLMKnobs) -> str:
    """Host and port: who answers, without credentials."""
    return urlsplit(knobs.base_url).netloc.rpartition("@")[2]
