"""Causal tokens: which position of which history a reader must not fall behind."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

TOKEN = re.compile(r"wt1\.([0-9a-f]{1,16})\.([1-9][0-9]{0,9})\.([0-9a-f]{1,16})\.([0-9]{1,15})", re.ASCII)
MAX_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class CausalToken:
    """The end of a write, or of a read, in the log of one cluster. Says how fresh, never who may."""

    system_id: int
    timeline: int
    lsn: int
    minted_ms: int = 0
    """When, by the minting machine's clock: only to choose between clusters, never to compare positions."""

    def __str__(self) -> str:
        """`wt1.<system>.<timeline>.<lsn>.<minted_ms>`, system and lsn in hexadecimal."""
        return f"wt1.{self.system_id:x}.{self.timeline}.{self.lsn:x}.{self.minted_ms}"

    @property
    def place(self) -> tuple[int, int, int]:
        """What it demands, whenever it was minted."""
        return self.system_id, self.timeline, self.lsn

    @property
    def position(self) -> str:
        """For people: `0/16B3748 on timeline 2`."""
        return f"{lsn_text(self.lsn)} on timeline {self.timeline}"


def parse(text: object) -> CausalToken | None:
    """The token that a text holds; None for anything else. It comes from strangers: it is never an error."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return None
    found = TOKEN.fullmatch(text)
    if found is None:
        return None
    system_id, timeline, lsn, minted_ms = found.groups()
    if int(timeline) >= 1 << 32:
        return None
    return CausalToken(int(system_id, 16), int(timeline), int(lsn, 16), int(minted_ms))


def merged(one: CausalToken | None, other: CausalToken | None) -> CausalToken | None:
    """What a reader of both must not fall behind.

    In one cluster the later timeline, then the greater position: what the other demands is before it, or lost in a
    failover. Between clusters the one minted later: positions of two clusters cannot be compared.
    """
    if one is None or other is None:
        return one or other
    if one.system_id == other.system_id:
        ahead = one if (one.timeline, one.lsn) >= (other.timeline, other.lsn) else other
        minted_ms = max(one.minted_ms, other.minted_ms)
        return CausalToken(ahead.system_id, ahead.timeline, ahead.lsn, minted_ms)
    return max(one, other, key=lambda token: (token.minted_ms, token.system_id, token.timeline, token.lsn))


def lsn_of(text: str) -> int:
    """PostgreSQL's `0/16B3748` as a number. Raises: ValueError."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def lsn_text(lsn: int) -> str:
    """A position as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


class Trail:
    """What the work under way has written and seen so far; tasks started inside share it."""

    __slots__ = ("token",)

    def __init__(self, token: CausalToken | None = None) -> None:
        self.token = token

    def add(self, token: CausalToken | None) -> None:
        """From here on, reads are at least as fresh as this."""
        if token is not None and token is not self.token:
            self.token = merged(self.token, token)


_trail: ContextVar[Trail | None] = ContextVar("causal_trail", default=None)


def current() -> CausalToken | None:
    """The token of the work under way; None when it has neither written nor read, nor was given one."""
    trail = _trail.get()
    return None if trail is None else trail.token


def note(token: CausalToken) -> None:
    """Only for units of work: remember where one ended; that is certain, as a stranger's token of elsewhere is not."""
    trail = _trail.get()
    if trail is None:
        _trail.set(Trail(token))
    elif trail.token is not None and trail.token.system_id != token.system_id:
        trail.token = token
    else:
        trail.add(token)


def forget(token: CausalToken) -> None:
    """Only for units of work: a token has been found to be nobody's; what was merged into it is not known any more."""
    trail = _trail.get()
    if trail is not None and trail.token == token:
        trail.token = None


@contextmanager
def carrying(token: CausalToken | None) -> Iterator[Trail]:
    """Work inside reads at least as fresh as `token`, and knows nothing of what happened outside; see `Trail`."""
    trail = Trail(token)
    reset = _trail.set(trail)
    try:
        yield trail
    finally:
        _trail.reset(reset)


def now_ms() -> int:
    """The wall clock for `minted_ms`."""
    return time.time_ns() // 1_000_000
