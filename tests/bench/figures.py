"""A measured figure: what was promised, what came out, how a peer did."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the result."""

    name: str
    what: str
    """The measured thing in words, for the README's table."""
    value: float
    unit: str
    goal: float
    better: Literal["lower", "higher"]
    goal_words: str = ""
    """The goal as the table says it; made from `goal` when empty."""
    peer: str | None = None
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """The value over the peer's."""
        return self.value / self.peer_value if self.peer_value else None

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached."""
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "name": self.name, "value": rounded(self.value), "unit": self.unit, "goal": rounded(self.goal),
                "peer": self.peer, "peer_value": rounded(self.peer_value), "ratio": rounded(self.ratio),
            }
        )  # fmt: skip


def rounded(value: float | None) -> float | None:
    """Three significant digits: more would be noise."""
    if value is None:
        return None
    short = float(f"{value:.3g}")
    return int(short) if short >= 100 else short


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really measured."""
    return sorted(samples)[max(0, math.ceil(len(samples) * percent / 100) - 1)]
