"""Moments as people write and read them: `2h` ago, `2027-01-01T09:00`, in 3 min."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from shared.errors import Misconfigured

UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LENGTH = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ?([a-z]+)")


def moment(written: str | None, *, option: str, now: datetime, side: Literal["ago", "ahead"]) -> datetime | None:
    """A moment: an ISO 8601 time (this machine's zone where it names none), or a length of time from now.

    Raises: Misconfigured with the remedy.
    """
    if written is None:
        return None
    length = _LENGTH.fullmatch(written.strip().lower())
    try:
        if length is not None and length[2] in UNITS_S:
            apart = timedelta(seconds=float(length[1]) * UNITS_S[length[2]])
            return now - apart if side == "ago" else now + apart
        return datetime.fromisoformat(written).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Misconfigured(
            f"{option} {written!r} is not a time; write for example 2h, 30min, or 2027-01-01T09:00+01:00."
        ) from None


def rounded(age: timedelta) -> str:
    """A length of time in its largest unit: 12 s, 3 min, 2 h, 5 d."""
    seconds = max(0, int(age.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def from_now(at: datetime, *, now: datetime) -> str:
    """`in 3 min`, or `3 min ago`."""
    return f"in {rounded(at - now)}" if at >= now else f"{rounded(now - at)} ago"
