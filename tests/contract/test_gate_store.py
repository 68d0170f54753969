"""The gate's contract over the store in memory."""

import pytest

from shared.resilience.memory_store import MemoryStore
from tests.contract.breaker_suite import BreakerSuite
from tests.contract.gate_world import GateWorld
from tests.contract.limits_suite import LimitsSuite


class TestMemoryStore(BreakerSuite, LimitsSuite):
    """Both suites, over memory."""

    @pytest.fixture
    def world(self) -> GateWorld:
        now = [1_780_000_000.0]

        async def advance(seconds: float) -> None:
            now[0] += seconds

        return GateWorld(store=MemoryStore(clock=lambda: now[0]), advance=advance)
