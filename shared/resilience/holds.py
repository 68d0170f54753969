"""What this process's calls under way have reserved of each budget: most of it comes back when they end."""

from collections import Counter

from shared.resilience.exchange import Answer, Ask

HELD_WAIT_S = 1.0
"""When to ask again for a call that the calls under way leave too little for."""


class Holds:
    """A budget that seems too small because calls under way have reserved their longest answers is not spent yet."""

    def __init__(self) -> None:
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._money: dict[tuple[str, str, str], float] = {}

    def hold(self, ask: Ask) -> None:
        """A call begins."""
        self._count(ask, 1)

    def release(self, ask: Ask) -> None:
        """It has ended."""
        self._count(ask, -1)

    def will_do(self, ask: Ask, answer: Answer) -> bool:
        """Whether a refused call could be paid if all of this process's calls under way cost nothing."""
        short = answer.short
        if answer.denial != "budget" or short is None:
            return False
        budget = ask.budgets[short.position]
        purse = (ask.tenant, budget.level, budget.name)
        is_money = short.kind == "money"
        held = self._money.get(purse, 0.0) if is_money else self._tokens[purse]
        needed = ask.cost if is_money else ask.tokens_in + ask.tokens_out
        return held > 0 and short.left + held > 0 and short.left + held >= needed

    def _count(self, ask: Ask, sign: int) -> None:
        for budget in ask.budgets:
            purse = (ask.tenant, budget.level, budget.name)
            self._tokens[purse] += sign * (ask.tokens_in + ask.tokens_out)
            self._money[purse] = self._money.get(purse, 0.0) + sign * ask.cost
            if self._tokens[purse] <= 0 and self._money[purse] <= 1e-9:
                del self._tokens[purse], self._money[purse]
