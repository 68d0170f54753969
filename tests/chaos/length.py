"""How long chaos lasts: bounded as part of the suite, or at length (CHAOS=long, which `make chaos` sets)."""

import os
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """What one run amounts to."""

    tasks: int
    """Tasks of the storm."""
    storm_s: float
    """Seconds during which the nemesis strikes; then it lets everything get well."""
    outage_s: float
    """Seconds for which PostgreSQL is down."""
    examples: int
    """Histories of the ledger that are tried against the model."""
    moves: int
    """Rules of each at the most, of which most make a stretch of moves."""
    shrinks: bool
    """Whether a history that fails is made as short as it can be: that takes minutes."""


SHORT = Length(tasks=300, storm_s=24.0, outage_s=10.0, examples=25, moves=6, shrinks=False)
LONG = Length(tasks=2000, storm_s=240.0, outage_s=30.0, examples=600, moves=12, shrinks=True)


def length() -> Length:
    """As the environment asks; CHAOS_EXAMPLES overrides the number of histories."""
    asked = LONG if os.environ.get("CHAOS") == "long" else SHORT
    examples = int(os.environ.get("CHAOS_EXAMPLES", asked.examples))
    return replace(asked, examples=examples)
