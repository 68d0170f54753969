"""Ask every endpoint at start whether it speaks the dialect that was declared, with an empty request, which is free."""

import asyncio
import json
from collections.abc import Mapping

import httpx2
from pydantic import SecretStr

from shared.errors import Misconfigured
from shared.llm.config import Endpoint
from shared.llm.config_file import Configured

PATHS = {"openai": "/chat/completions", "anthropic": "/v1/messages"}
NOT_HERE = frozenset({404, 405, 501})
CURT = frozenset({400, 415, 422})
LIMIT_S = 3.0


async def check_dialects(configured: Configured) -> tuple[str, ...]:
    """Ask all endpoints at once; one that is down now is no mistake, and is a warning.

    Returns: Sentences about endpoints that could not be asked or refuse their key.
    Raises: Misconfigured, naming every endpoint that speaks something else.
    """
    endpoints = configured.config.endpoints
    found = await asyncio.gather(*(_check(name, one, key=configured.keys[name]) for name, one in endpoints.items()))
    wrong = [problem for problem, _ in found if problem is not None]
    if wrong:
        raise Misconfigured("; ".join(wrong))
    return tuple(warning for _, warning in found if warning is not None)


def is_curt(status: int, *, content_type: str) -> bool:
    """Whether an answer is a complaint about the empty request in plain words, as some servers make it."""
    return status in CURT and content_type.partition(";")[0].strip().lower() in ("text/plain", "")


def judge(status: int, *, content_type: str, body: bytes) -> str | None:
    """What an answer to an empty request says against the dialect; None: nothing.

    Whoever speaks it complains about the empty request, or about the key, in JSON. A page, or "not found", comes from
    somebody else.
    """
    if status in NOT_HERE:
        return f"answers {status}: that path is unknown there"
    if 300 <= status < 400:
        return f"answers {status}: it sends elsewhere"
    if status >= 500:  # down or overloaded, whatever it speaks
        return None
    try:
        is_object = isinstance(json.loads(body), dict)
    except ValueError:
        is_object = False
    if not is_object:
        return f"answers with {content_type.partition(';')[0] or 'something'} that is no JSON object"
    return None


async def _check(name: str, endpoint: Endpoint, *, key: SecretStr) -> tuple[str | None, str | None]:
    path = PATHS[endpoint.dialect]
    address, _, query = endpoint.base_url.partition("?")
    url = address.rstrip("/") + path + (f"?{query}" if query else "")
    try:
        async with asyncio.timeout(LIMIT_S), httpx2.AsyncClient(trust_env=False, proxy=endpoint.proxy_url) as client:
            answer = await client.post(url, json={}, headers=_headers(endpoint, key=key), follow_redirects=False)
    except (httpx2.HTTPError, OSError, TimeoutError) as error:
        return None, f"endpoint {name} cannot be reached at start ({type(error).__name__})"
    kind = answer.headers.get("content-type", "")
    problem = judge(answer.status_code, content_type=kind, body=answer.content)
    if problem is not None and is_curt(answer.status_code, content_type=kind):
        return None, f"endpoint {name} {problem}: perhaps it does not speak {endpoint.dialect}"
    if problem is not None:
        hint = "check base_url (with its version path) and dialect"
        return f"endpoint {name} does not speak {endpoint.dialect}: {endpoint.host} {problem}; {hint}", None
    if answer.status_code in (401, 403):
        return None, f"endpoint {name} refuses its key ({answer.status_code})"
    return None, None


def _headers(endpoint: Endpoint, *, key: SecretStr) -> Mapping[str, str]:
    secret = key.get_secret_value()
    if endpoint.dialect == "anthropic":
        return {"x-api-key": secret, "anthropic-version": "2023-06-01"}
    return {"api-key": secret} if endpoint.key_header == "api-key" else {"authorization": f"Bearer {secret}"}
