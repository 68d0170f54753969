"""When an answer may be kept, and under which key: the exact question, by the same tenant, under the same rights."""

import hashlib
import hmac
import json
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from shared.llm.messages import ChatReply, ChatRequest

SCHEMA = 1
"""Raised when the meaning of the key changes: answers under the old one are not found any more."""
CALM_TEMPERATURE = 0.3
MAX_ANSWER_CHARACTERS = 64_000
CacheMode = Literal["never", "auto", "degraded", "fresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks and on what ground, beside the words of the question: all of it is part of the key."""

    tenant: str
    agent: str
    prompt_version: str = "1"
    scope: str = ""
    """Rights under which the answer was made: a hash of roles, for example."""
    user: str = ""
    """Set for personalised answers, which are for one person only."""
    corpus: str = ""
    """Version of the documents and their access rules."""
    locale: str = ""


def may_keep(request: ChatRequest, *, mode: CacheMode) -> bool:
    """Whether an answer to this request may be looked up and kept at all.

    Not when tools took part anywhere in it: their results are of that moment, and an answer given again would pretend
    that they ran.
    """
    if mode == "never" or any(message.role == "tool" or message.tool_calls for message in request.messages):
        return False
    return mode != "auto" or (request.temperature is not None and request.temperature <= CALM_TEMPERATURE)


def is_worth_keeping(reply: ChatReply) -> bool:
    """Whether this answer is one: whole, at L0, not from the cache, without tool calls, of a sane size."""
    return (
        reply.level == "L0"
        and reply.finish_reason == "stop"
        and not reply.tool_calls
        and reply.cached_at is None
        and not reply.could_not_act
        and 0 < len(reply.text) <= MAX_ANSWER_CHARACTERS
    )


def answer_key(secret: bytes, request: ChatRequest, *, asker: Asker, family: str) -> str:
    """The key of an answer, hex.

    Args:
        secret: The fleet's; each tenant's own is derived from it, so that keys of two tenants have nothing in common.
        family: Models that may answer for each other.
    """
    question: dict[str, Any] = {
        "schema": SCHEMA,
        "tenant": asker.tenant,
        "scope": asker.scope,
        "user": asker.user,
        "agent": [asker.agent, asker.prompt_version],
        "family": family,
        "messages": [[message.role, _normal(message.content)] for message in request.messages],
        "params": [request.max_tokens, request.temperature],
        "tools": [tool.to_json() for tool in request.tools],
        "corpus": asker.corpus,
        "locale": asker.locale,
    }
    text = json.dumps(question, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(_tenant_secret(secret, asker.tenant), text.encode(), hashlib.sha256).hexdigest()


def tenant_mark(tenant: str) -> str:
    """A tenant's name as part of a key: of any characters, always the same length."""
    return hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _tenant_secret(secret: bytes, tenant: str) -> bytes:
    return hmac.new(secret, b"answers/" + tenant.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def _normal(text: str) -> str:
    """One spelling of what reads the same (Unicode NFC); nothing else is folded."""
    return unicodedata.normalize("NFC", text)
