"""Pure parts of session memory: the cache key and the bounds of a context."""

from collections.abc import Sequence
from dataclasses import replace

from shared.contracts import DEFAULT_TENANT
from shared.llm.messages import Message


def session_key(tenant: str, session_id: str) -> str:
    """The cache key of a session: `ctx:{session_id}`, or `ctx:{tenant}:{session_id}` outside the default tenant.

    Colons inside a name are written as %3A: otherwise the default tenant's session `acme:1` would be session `1` of
    the tenant `acme`.
    """
    if tenant == DEFAULT_TENANT:
        return f"ctx:{_escaped(session_id)}"
    return f"ctx:{_escaped(tenant)}:{_escaped(session_id)}"


def token_key(key: str) -> str:
    """Where the causal token of a session is kept: `wt:…` beside `ctx:…`."""
    return f"wt:{key.removeprefix('ctx:')}"


def bounded(messages: Sequence[Message], *, limit: int, characters: int) -> tuple[Message, ...]:
    """The newest messages that fit, oldest first.

    Args:
        messages: A conversation, oldest first.
        limit: The most messages to keep.
        characters: The most characters to keep in total. A newest message that alone is longer is cut to it, so
            that a context is never empty while there is something to say.
    """
    kept: list[Message] = []
    left = characters
    for message in reversed(messages[-limit:]):
        if len(message.content) > left:
            if not kept:
                kept.append(replace(message, content=message.content[:left]))
            break
        kept.append(message)
        left -= len(message.content)
    return tuple(reversed(kept))


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace(":", "%3A")
