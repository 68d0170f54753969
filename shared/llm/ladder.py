"""The ladder of degradation, decided purely: what is available in, a level, an action and the reasons out.

L0  the model that was asked, with everything it needs
L1  a backup model, after a timeout or behind an open breaker
L2  a cached answer, when no model is up
L3  plain conversation, without retrieval or without tools
L4  friendly static words, which need no network at all
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.resilience.retry import SPREAD

Level = Literal["L0", "L1", "L2", "L3", "L4"]
LEVELS: tuple[Level, ...] = ("L0", "L1", "L2", "L3", "L4")
Action = Literal["answer", "answer_from_cache", "answer_plainly", "say_sorry", "say_could_not_act"]
LEAST_WAIT_S = 1.0
"""A task that is put back costs a few writes: not worth it for less."""
DOWN_WAIT_S = 10.0
"""Shortest wait for models that are down: what says "in a second" then is a breaker between two probes, not a model."""
ROUNDING_S = 0.01
"""What clocks and roundings may add to a wait that somebody was told."""
Way = Literal["down", "busy", "budget", "unfit", "returning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What is available for one answer. The level is a projection of it; L1 and L3 can hold at once."""

    llm: Literal["first", "backup", "none"] = "first"
    rag: bool = True
    tools: bool = True
    cache: bool = False
    """An answer to this very question is kept."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, how degraded that is, and why, in sentences."""

    action: Action
    level: Level
    reasons: tuple[str, ...] = ()


def decide(capabilities: Capabilities, *, must_act: bool = False, reasons: Sequence[str] = ()) -> Decision:
    """Project a vector of capabilities onto the ladder.

    Args:
        must_act: The task acts through tools; words alone would be no answer to it.
        reasons: Sentences about what is missing, as its observers put them.
    """
    why = tuple(reasons)
    if capabilities.llm == "none":
        if must_act:
            return Decision("say_could_not_act", "L4", (*why, "no language model is up and the task must act"))
        if capabilities.cache:
            return Decision("answer_from_cache", "L2", (*why, "no language model is up: a cached answer is given"))
        return Decision("say_sorry", "L4", (*why, "no language model is up and no answer is kept"))
    level: Level = "L1" if capabilities.llm == "backup" else "L0"
    if not capabilities.tools and must_act:
        return Decision("say_could_not_act", "L3", (*why, "tools are unavailable and the task must act"))
    if not capabilities.rag:
        level, why = "L3", (*why, "retrieval is unavailable: plain conversation")
    if not capabilities.tools:
        level, why = "L3", (*why, "tools are unavailable: plain conversation")
    return Decision("answer_plainly" if level == "L3" else "answer", level, why)


def worst(*levels: Level) -> Level:
    """The most degraded of these; L0 of none."""
    return max(levels, key=LEVELS.index, default="L0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A model of the chain that gave no answer, and why.

    `retry_after_s` is when it may be asked again, None where nobody knows. `way`: `unfit` models cannot take this
    request at all; `returning` ones are spared while they come back.
    """

    model: str
    way: Way
    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Put the task back for these seconds."""

    retry_after_s: float
    reason: str


def worth_waiting(
    passed: Sequence[Passed],
    *,
    when_down: Literal["degrade", "wait"],
    patience_s: float,
    left_s: float | None,
    usual_wait_s: float,
) -> Wait | None:
    """Whether a task is better put back than answered from further down the ladder; None: degrade.

    Args:
        passed: Every model of the chain.
        when_down: The agent's policy for models that are down.
        patience_s: The longest wait for models that are only busy.
        left_s: Seconds to the task's deadline, None without one; a wait beyond it is none.
        usual_wait_s: For models that are down for nobody knows how long.
    """
    busy = [one.retry_after_s for one in passed if one.way == "busy" and one.retry_after_s is not None]
    if busy and min(busy) <= patience_s + ROUNDING_S and _fits(max(LEAST_WAIT_S, min(busy)), left_s):
        return Wait(max(LEAST_WAIT_S, min(busy)), f"every model is busy or down; one is due in {min(busy):.1f} s")
    away = [one.retry_after_s for one in passed if one.way in ("down", "busy")]
    if when_down == "wait" and away:
        least_s = max(LEAST_WAIT_S, min(DOWN_WAIT_S, usual_wait_s))
        wait_s = min(usual_wait_s if one is None else max(one, least_s) for one in away)
        if _fits(wait_s, left_s):
            return Wait(wait_s, f"every model is down; the next try is due in {wait_s:.1f} s")
    return None


def spread(wait_s: float, *, left_s: float | None, draw: Callable[[], float]) -> float:
    """A wait, up to a tenth longer by chance: those who are put back together do not wake together."""
    stretched_s = wait_s * (1 + SPREAD * draw())
    return stretched_s if _fits(stretched_s, left_s) else wait_s


def _fits(wait_s: float, left_s: float | None) -> bool:
    return left_s is None or wait_s < left_s
