"""One process of a fleet that calls an endpoint made of files: `python -m tests.integration.gate_worker CONFIG`.

The endpoint's state is the text of `state` (up, down, hang); every call is a line in `<pid>.calls`.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from shared.errors import BreakerOpen, BudgetSpent, LLMUnavailable, Throttled
from shared.resilience.fail_open import open_gate_store
from shared.resilience.gate import Gate, Permit
from shared.resilience.knobs import (
    BreakerKnobs,
    KeyRules,
    Limits,
    RetryBudgetKnobs,
    RetryKnobs,
    StoreKnobs,
)
from shared.resilience.retry import Again, retried
from shared.resilience.spending import Budget

PAUSE_S = 0.01


class Worker:
    """Calls as often as it may until the file `stop` appears."""

    def __init__(self, config: dict[str, Any], calls: TextIO) -> None:
        self._config = config
        self._folder = Path(config["folder"])
        self._calls = calls
        rules = KeyRules(
            breaker=BreakerKnobs(**config.get("breaker", {})),
            limits=Limits(**config.get("limits", {})),
            retry_budget=RetryBudgetKnobs(**config.get("retry_budget", {})),
        )
        store = open_gate_store(StoreKnobs(redis_url=config["redis_url"], **config.get("store", {})))
        self._gate = Gate(store, lambda _: rules)
        self._call_s: float = config.get("call_s", 0.1)
        self._budgets = tuple(Budget(**one) for one in config.get("budgets", []))

    async def run(self) -> None:
        """All slots, once the file `go` appears: workers take seconds to start, and not all the same."""
        while not (self._folder / "go").exists():
            await asyncio.sleep(PAUSE_S)
        await asyncio.gather(*(getattr(self, self._config["what"])() for _ in range(self._config.get("slots", 2))))
        await self._gate.aclose()

    async def probing(self) -> None:
        """Call, and pause only when refused."""
        while self._goes_on():
            try:
                permit = await self._gate.admit("endpoint:model", lease_s=5.0)
            except (BreakerOpen, Throttled) as refused:
                await asyncio.sleep(max(0.002, min(refused.retry_after_s or 0.0, PAUSE_S)))
                continue
            state = self._state()
            self._note(permit, state)
            await asyncio.sleep(60.0 if state == "hang" else self._call_s)
            await permit.settle("failure" if state == "down" else "ok")

    async def spending(self) -> None:
        """Spend until a budget is empty; every call costs half more than it was estimated."""
        while self._goes_on():
            try:
                permit = await self._gate.admit(
                    "endpoint:model", tokens_in=100, cost=0.01, budgets=self._budgets, wait_up_to_s=1.0
                )
            except BudgetSpent:
                return
            except Throttled:  # this process's share, while the fleet cannot be asked
                await asyncio.sleep(5 * PAUSE_S)
                continue
            await asyncio.sleep(self._call_s)
            await permit.settle("ok", tokens_in=150, cost=0.015)
            self._note(permit, "spent")

    async def storming(self) -> None:
        """Every call fails and would be tried four times."""

        async def call(attempt: int) -> None:
            permit = await self._gate.admit("endpoint:model", attempt=attempt)
            self._note(permit, "down")
            await permit.settle("neutral")
            raise LLMUnavailable("down")

        knobs = RetryKnobs(first_wait_s=0.02, cap_s=0.02)
        while self._goes_on():
            try:
                await retried(call, judge=lambda _: Again(True), knobs=knobs)
            except LLMUnavailable:
                await asyncio.sleep(self._call_s)

    def _state(self) -> str:
        return (self._folder / "state").read_text("utf-8")

    def _goes_on(self) -> bool:
        return not (self._folder / "stop").exists()

    def _note(self, permit: Permit, state: str) -> None:
        line = {
            "at": time.clock_gettime(time.CLOCK_MONOTONIC), "wall": time.time(), "pid": os.getpid(), "state": state,
            "mode": permit.mode,
            "is_probe": permit.is_probe, "generation": permit.generation, "attempt": permit.attempt,
            "left": [one.tokens for one in permit.budget_left],
        }  # fmt: skip
        self._calls.write(json.dumps(line) + "\n")
        self._calls.flush()


def main() -> None:
    """Run."""
    config = json.loads(sys.argv[1])
    with (Path(config["folder"]) / f"{os.getpid()}.calls").open("a", encoding="utf-8") as calls:
        asyncio.run(Worker(config, calls).run())


if __name__ == "__main__":
    main()
