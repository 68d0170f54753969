"""Secrets kept out of logs: by the name of a field, by the look of a text, and by hooks of whoever runs the fleet.

It is the last processor before a line is written, so nothing that an event, an exception or a hook brings passes it by.
"""

import importlib
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from structlog.types import EventDict, WrappedLogger

from shared.errors import Misconfigured

REDACTED = "[redacted]"
DEEPEST = 8
"""Levels of containers that are looked through; what lies deeper is left out."""

Hook = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Takes an event's fields and returns those that may be written."""

_WORDS = frozenset(
    ("password", "passwd", "passphrase", "pwd", "secret", "secrets", "token", "authorization", "credential",
     "credentials", "cookie", "cookies", "apikey", "bearer", "jwt")
)  # fmt: skip
_PAIRS = frozenset(
    (first, last)
    for first in ("api", "access", "auth", "private", "secret", "signing", "master", "data", "ledger", "encryption")
    for last in ("key", "keys")
)
_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_NAMES = r"(?:api[_-]?key|ledger[_-]keys|access[_-]?key|token|secret|password|passwd|passphrase|pwd|authorization)"
_SHOWN = r"(?!\[redacted|bearer\b|basic\b)"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
    (re.compile(r"://([^\s/:@\"']*):[^\s/\"']+@"), rf"://\1:{REDACTED}@"),
    (re.compile(r"\b(bearer)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(r"\b(authorization[\"']?\s*[=:]\s*[\"']?basic)\s+[\w+/=-]+", re.IGNORECASE), rf"\1 {REDACTED}"),
    (
        re.compile(rf"({_NAMES}\\*[\"']?\s*:\s*\\*[\"']){_SHOWN}[^\"']+?(?=\\*[\"']|\Z)", re.IGNORECASE),
        rf"\1{REDACTED}",
    ),
    (re.compile(rf"({_NAMES}=\\*[\"']?){_SHOWN}[^\s\"'&;\\]+", re.IGNORECASE), rf"\1{REDACTED}"),
    (
        re.compile(
            r"\bsk-[\w-]{8,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[oprsu]_\w{20,}|\bgithub_pat_\w{20,}|\bxox[a-z]-[\w-]{10,}"
            r"|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
        ),
        REDACTED,
    ),
)
"""What looks like a secret wherever it stands. The last: OpenAI and its like, AWS, GitHub, Slack, Google, JWT."""
_MARKS = (
    "://", "key", "token", "secret", "passw", "pwd", "passphrase", "bearer", "authorization", "sk-", "akia", "asia",
    "ghp_", "gho_", "ghr_", "ghs_", "ghu_", "github_pat_", "xox", "aiza", "eyj",
)  # fmt: skip
"""Each pattern needs one of these, lower case: most texts have none, and looking for them is ten times quicker."""


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret: `api_key`, `X-Api-Key`, `refreshToken`; not `input_tokens`."""
    words = [word.lower() for word in _SPLIT.split(name) if word]
    return not _WORDS.isdisjoint(words) or not _PAIRS.isdisjoint(pairwise(words))


def redact_text(text: str) -> str:
    """The text without what looks like a secret."""
    lower = text.lower()
    if not any(mark in lower for mark in _MARKS):
        return text
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redact(value: Any, *, depth: int = 0) -> Any:
    """The value without secrets, containers looked through."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode(errors="replace"))
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        shown = repr(value)  # what the renderer would write
        return value if redact_text(shown) == shown else redact_text(shown)
    if depth == DEEPEST:
        return REDACTED
    if isinstance(value, Mapping):
        return {_name(name): _field(str(name), one, depth=depth + 1) for name, one in value.items()}
    return [redact(one, depth=depth + 1) for one in value]


def _field(name: str, value: Any, *, depth: int) -> Any:
    if is_secret_name(name) and value is not None and not isinstance(value, bool | int | float):
        return REDACTED
    return redact(value, depth=depth)


def _name(name: Any) -> Any:
    return redact_text(name) if isinstance(name, str) else name


def load_hooks(names: str) -> tuple[Hook, ...]:
    """The functions that FLEET_LOG_REDACT names: `module:function`, separated by commas.

    Raises: Misconfigured naming the variable and the entry.
    """
    return tuple(_load(name.strip()) for name in names.split(",") if name.strip())


def _load(name: str) -> Hook:
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise _wrong(f"{name!r} is not of the form module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (ImportError, TypeError, ValueError) as error:
        raise _wrong(f"cannot import {module!r}: {error}") from error
    if not callable(found):
        raise _wrong(f"module {module!r} has no function {function!r}")
    hook: Hook = found
    return hook


def _wrong(problem: str) -> Misconfigured:
    return Misconfigured(f"FLEET_LOG_REDACT: {problem}", variable="FLEET_LOG_REDACT")


class Redaction:
    """A structlog processor, and the same for lines of the standard library: first the hooks, then the built-in rules.

    A hook that fails costs the line all that it carries but the event's name: better a poor line than a leak.
    """

    def __init__(self, hooks: Sequence[Hook] = ()) -> None:
        self._hooks = tuple(hooks)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> MutableMapping[str, Any]:
        """One event's fields, ready to be written."""
        return self.cleaned(event, kept=("event", "level", "timestamp"))

    def cleaned(self, event: Mapping[str, Any], *, kept: Sequence[str]) -> dict[str, Any]:
        """An event's fields after hooks and rules; `kept` are those that outlive a hook's failure."""
        for hook in self._hooks:
            try:
                event = dict(hook(dict(event)))
            except Exception as error:  # a hook is foreign code: its failure is told in the line itself
                poor = {name: event[name] for name in kept if name in event}
                event = {**poor, "redaction_failed": f"{_name_of(hook)}: {type(error).__name__}"}
        return {name: _field(name, value, depth=0) for name, value in event.items()}

    def formatter(self, pattern: str) -> logging.Formatter:
        """A formatter of `logging` whose finished text, traceback included, goes the same way."""
        return _RedactingFormatter(pattern, self)


class _RedactingFormatter(logging.Formatter):
    def __init__(self, pattern: str, redaction: Redaction) -> None:
        super().__init__(pattern)
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        line = {"event": super().format(record), "logger": record.name, "level": record.levelname.lower()}
        clean = self._redaction.cleaned(line, kept=("level", "logger"))
        return str(clean["event"]) if "event" in clean else f"{REDACTED} {clean}"


def _name_of(hook: Hook) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))
