"""Budgets while the fleet cannot be asked: each process spends its share of what was left, and owes it to the fleet.

With `share` = 1 / processes, all of them together spend no more than was left, as each of them last heard it; what they
spent is charged to the fleet's purses when these are there again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from shared.resilience import spending
from shared.resilience.exchange import Answer, Ask, Settlement
from shared.resilience.memory_store import MANY, steady_wall_clock
from shared.resilience.spending import Budget, Left, Spent

SHARE_WAIT_S = 5.0
"""When to ask again for a call that only this process's share is too small for: the fleet may be there again."""

ROUNDING = 1e-9

Purse = tuple[str, str, str]


@dataclass(slots=True)
class Page:
    """One purse as this process knows it."""

    tenant: str
    budget: Budget
    heard: Spent
    """What the fleet had spent when it last said so."""
    used: Spent = field(default_factory=Spent)
    """What this process has spent since it parted from the fleet; counts against its share."""
    owed: Spent = field(default_factory=Spent)
    """The part of it that the fleet's purse has not been charged for; below nothing, where it was charged too much."""


class Allowances:
    """What this process may spend of each budget.

    Args:
        share: Of what was left when the fleet was last heard of.
        clock: Seconds since the epoch.
    """

    def __init__(self, *, share: float, clock: Callable[[], float] | None = None) -> None:
        self._share = share
        self._clock = clock or steady_wall_clock()
        self._pages: dict[Purse, Page] = {}
        self.is_apart = False

    def heard(self, tenant: str, budgets: Sequence[Budget], spent: Sequence[Spent]) -> None:
        """The fleet said what it has spent; after a parting it is not believed before all have paid."""
        if not self.is_apart:
            for budget, one in zip(budgets, spent, strict=False):
                self._page(tenant, budget).heard = one

    def take(self, ask: Ask, answer: Answer, *, is_owed: bool) -> Answer:
        """Charge an admitted call; the answer is a refusal where it is too much, and then it must be given back."""
        pages = [self._page(ask.tenant, budget) for budget in ask.budgets]
        tokens, money = ask.tokens_in + ask.tokens_out, ask.cost
        known = [_sum(page.heard, page.used) for page in pages]
        short = spending.short(ask.budgets, known, tokens=tokens, money=money)
        shares = [self._of_share(page) for page in pages]
        is_over = spending.short(shares, [page.used for page in pages], tokens=tokens, money=money) is not None
        self.charge(ask.tenant, ask.budgets, tokens=tokens, money=money, is_owed=is_owed)
        spent = answer.spent if answer.shared else tuple(_sum(page.heard, page.used) for page in pages)
        if short is not None:
            return replace(answer, denial="budget", short=short, spent=spent)
        if is_over:
            return replace(answer, denial="budget_share", retry_after_s=SHARE_WAIT_S, spent=spent)
        return replace(answer, spent=spent)

    def correct(self, settlement: Settlement, *, is_owed: bool) -> None:
        """Take or give back what the estimate was wrong by."""
        ask, was_reserved = settlement.ask, settlement.answer is not None
        tokens = settlement.tokens_in + settlement.tokens_out - (ask.tokens_in + ask.tokens_out) * was_reserved
        self.charge(
            ask.tenant, ask.budgets, tokens=tokens, money=settlement.cost - ask.cost * was_reserved, is_owed=is_owed
        )  # fmt: skip

    def charge(self, tenant: str, budgets: Sequence[Budget], *, tokens: int, money: float, is_owed: bool) -> None:
        """Count what this process spent on its own."""
        for budget in budgets:
            page = self._page(tenant, budget)
            page.used = _sum(page.used, Spent(0, tokens, money))
            if is_owed:
                page.owed = _sum(page.owed, Spent(0, tokens, money))

    def left(self, tenant: str, budgets: Sequence[Budget]) -> tuple[Left, ...]:
        """What remains, as far as this process knows."""
        pages = [self._page(tenant, budget) for budget in budgets]
        return tuple(spending.left(page.budget, _sum(page.heard, page.used)) for page in pages)

    def debts(self) -> Iterator[tuple[str, Budget, Spent]]:
        """What is owed, and to which purse."""
        for each in list(self._pages.values()):
            page = self._page(each.tenant, each.budget)  # what was owed in another period is owed no more
            if page.owed.tokens or abs(page.owed.money) > ROUNDING:
                yield page.tenant, page.budget, page.owed

    def paid(self, tenant: str, budget: Budget, amount: Spent) -> None:
        """So much of a debt is paid."""
        page = self._page(tenant, budget)
        page.owed = _sum(page.owed, Spent(0, -amount.tokens, -amount.money))

    def rejoin(self) -> None:
        """The fleet's word counts again."""
        self.is_apart = False
        for page in self._pages.values():
            page.heard, page.used = _sum(page.heard, page.used), Spent()

    def _of_share(self, page: Page) -> Budget:
        left = spending.left(page.budget, page.heard)
        return replace(
            page.budget,
            tokens=None if left.tokens is None else int(max(0, left.tokens) * self._share),
            money=None if left.money is None else max(0.0, left.money) * self._share,
        )

    def _page(self, tenant: str, budget: Budget) -> Page:
        """The purse's page of the present period."""
        purse, period = (tenant, budget.level, budget.name), spending.period_of(budget, self._clock())
        page = self._pages.get(purse)
        if page is None or page.heard.period != period:
            page = self._pages[purse] = Page(tenant, budget, Spent(period))
            if len(self._pages) > MANY:
                paid = [each for each, one in self._pages.items() if one.owed == Spent() and one is not page]
                for each in paid[: MANY // 2]:
                    del self._pages[each]
        return page


def _sum(one: Spent, other: Spent) -> Spent:
    """In the first one's period."""
    return Spent(one.period, one.tokens + other.tokens, one.money + other.money)
