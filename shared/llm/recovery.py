"""Hysteresis: a model that was away gets its calls back by and by, so that its return does not topple it again."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Standing:
    """What this process has seen of a model."""

    is_away: bool = False
    back_since: float | None = None
    """Monotonic seconds of the first answer after it was away."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of calls that should go to a model now, and why."""

    value: float
    reason: str = ""


def observed(standing: Standing, event: Literal["answered", "away"], *, now: float, recover_over_s: float) -> Standing:
    """Take in one call's end; `away` means down or behind an open breaker, never a refused request."""
    if event == "away":
        return Standing(is_away=True)
    if not standing.is_away:
        return standing
    since = now if standing.back_since is None else standing.back_since
    if now - since >= recover_over_s:
        return Standing()
    return replace(standing, back_since=since)


def share(standing: Standing, *, now: float, recover_over_s: float, first_share: float) -> Share:
    """Say how much to send.

    A model that is away gets every call: its breaker lets none but probes through, and one that does not answer yet
    must be found by somebody. From the first answer on the share grows evenly from `first_share` to 1.

    Returns: A share in [first_share, 1].
    """
    if not standing.is_away or standing.back_since is None or recover_over_s <= 0:
        return Share(1.0)
    elapsed = min(1.0, max(0.0, (now - standing.back_since) / recover_over_s))
    value = first_share + (1 - first_share) * elapsed
    return Share(value, f"it is coming back and gets {value:.0%} of the calls")
