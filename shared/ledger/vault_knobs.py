"""The ledger's master keys: how FLEET_LEDGER_KEYS is read, and how a new key is made."""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

KEY_BYTES = 32
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TEXT_CHARACTERS = 44
"""A base64 text of 32 bytes."""


@dataclass(frozen=True, slots=True)
class MasterKey:
    """One key of FLEET_LEDGER_KEYS: its id is written beside what it seals, its secret is shown nowhere."""

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_key_id(self.id):
            raise ValueError("a key id must be 1 to 64 of A-Z, a-z, 0-9, '_', '.', '-'")
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a master key must have {KEY_BYTES} bytes")


def is_key_id(text: object) -> bool:
    """Whether this can name a key."""
    return isinstance(text, str) and _KEY_ID.fullmatch(text) is not None


def read_keys(text: str) -> tuple[MasterKey, ...]:
    """The keys of FLEET_LEDGER_KEYS, `id:base64,id:base64`: the first seals, all open. Empty text: no keys.

    Raises: ValueError, a sentence that starts with the knob's name and repeats nothing of the value.
    """
    entries = text.split(",") if text.strip() else []
    keys = tuple(_read_key(entry.strip(), number=number) for number, entry in enumerate(entries, 1))
    _refuse_pair(keys, lambda one: one.id, "have the same id: rename one of them")
    _refuse_pair(keys, lambda one: one.secret, "are the same key: make a new one with `fleet keys new`")
    return keys


def new_key_line() -> str:
    """A fresh key as an entry of FLEET_LEDGER_KEYS; its id is a hash of it, so no two keys meet under one id."""
    secret = os.urandom(KEY_BYTES)
    name = hashlib.sha256(b"agent-fleet key id" + secret).hexdigest()[:8]
    return f"k{name}:{base64.b64encode(secret).decode()}"


def _read_key(entry: str, *, number: int) -> MasterKey:
    name, colon, text = entry.partition(":")
    if not colon or not is_key_id(name):
        raise ValueError(f"keys must be id:base64 pairs, separated by commas: entry {number} is not one")
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"keys must be base64: entry {number} is not (expected {_TEXT_CHARACTERS} characters)"
        ) from None
    if len(secret) != KEY_BYTES:
        raise ValueError(f"keys must have {KEY_BYTES} bytes each: entry {number} has {len(secret)}")
    return MasterKey(name, secret)


def _refuse_pair(keys: tuple[MasterKey, ...], aspect: Callable[[MasterKey], object], complaint: str) -> None:
    first: dict[object, int] = {}
    for number, key in enumerate(keys, 1):
        if aspect(key) in first:
            raise ValueError(f"keys must differ: entries {first[aspect(key)]} and {number} {complaint}")
        first[aspect(key)] = number
