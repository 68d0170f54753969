"""Session memory over the fakes."""

import pytest

from shared.memory.session import SessionMemory
from tests.contract.session_suite import SessionSuite, SessionWorld
from tests.fakes.fake_sessions import FakeCache, FakeTruth


class TestSessionMemoryOverFakes(SessionSuite):
    """The suite, in memory."""

    @pytest.fixture
    def world(self) -> SessionWorld:
        truth, cache = FakeTruth(), FakeCache()

        async def wipe() -> None:
            cache.wipe()

        return SessionWorld(truth=truth, cache=cache, worker=lambda: SessionMemory(truth, cache), wipe=wipe)
