"""Budgets: how many tokens and how much money a run, an agent, a tenant or a day may spend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

WEEK_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A purse. A call charges every budget it names: a child run that names its parent's inherits what remains."""

    level: str
    """run, agent, tenant, day, …: for people and metrics."""

    name: str
    """Which one; budgets of one tenant with the same level and name are the same purse."""

    tokens: int | None = None
    """Most tokens, sent and received; None is no limit."""

    money: float | None = None
    """Most money; None is no limit."""

    period_s: float | None = None
    """Seconds after which it is full again, counted from the epoch by the server's clock; 86400 is a day in UTC."""

    ttl_s: float = WEEK_S
    """Seconds without a call after which it is forgotten."""

    def __post_init__(self) -> None:
        for kind in ("tokens", "money"):
            value = getattr(self, kind)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"budget {self.level} {self.name}: {kind} must not be negative, not {value!r}")
        if self.period_s is not None and not self.period_s > 0:
            raise ValueError(f"budget {self.level} {self.name}: period_s must be above 0")
        if not self.ttl_s > 0:
            raise ValueError(f"budget {self.level} {self.name}: ttl_s must be above 0")

    def limit(self, kind: Literal["tokens", "money"]) -> float | None:
        """The limit in tokens or in money."""
        return self.tokens if kind == "tokens" else self.money


@dataclass(frozen=True, slots=True)
class Left:
    """What remains of a budget; None where it has no limit, below zero where calls cost more than estimated."""

    level: str
    name: str
    tokens: int | None
    money: float | None


class Spent(NamedTuple):
    """What was charged to a budget in a period."""

    period: int = 0
    tokens: int = 0
    money: float = 0.0


@dataclass(frozen=True, slots=True)
class Short:
    """The budget that is too small for a call."""

    position: int
    kind: Literal["tokens", "money"]
    left: float


def period_of(budget: Budget, now: float) -> int:
    """The number of the present period."""
    return int(now // budget.period_s) if budget.period_s else 0


def in_period(spent: Spent, period: int) -> Spent:
    """What was spent in that period: nothing when the record is of another one."""
    return spent if spent.period == period else Spent(period)


def left(budget: Budget, spent: Spent) -> Left:
    """What remains."""
    tokens = None if budget.tokens is None else budget.tokens - spent.tokens
    return Left(budget.level, budget.name, tokens, None if budget.money is None else budget.money - spent.money)


def short(budgets: Sequence[Budget], spent: Sequence[Spent], *, tokens: int, money: float) -> Short | None:
    """The first budget that cannot pay; a budget with nothing left refuses even a call that seems to cost nothing."""
    for position, (budget, used) in enumerate(zip(budgets, spent, strict=True)):
        rest = left(budget, used)
        if rest.tokens is not None and (rest.tokens < tokens or rest.tokens <= 0):
            return Short(position, "tokens", rest.tokens)
        if rest.money is not None and (rest.money < money or (rest.money <= 0 and money > 0)):
            return Short(position, "money", rest.money)
    return None


def charged(spent: Spent, *, tokens: int, money: float) -> Spent:
    """After a charge, or a refund when negative; never below nothing."""
    return Spent(spent.period, max(0, spent.tokens + tokens), max(0.0, spent.money + money))
