"""The answer cache's promises, on the fake; tests/integration has them on Redis."""

import pytest

from tests.contract.answer_suite import AnswerSuite, AnswerWorld
from tests.fakes.fake_plane import FakeAnswers


class TestFakeAnswers(AnswerSuite):
    @pytest.fixture
    def world(self) -> AnswerWorld:
        cache = FakeAnswers()
        return AnswerWorld(cache, lambda: cache)
