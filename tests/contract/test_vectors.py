"""The vector port over its fake."""

import pytest

from shared.retrieval.ports import VectorPort
from tests.contract.vector_suite import VectorSuite
from tests.fakes.fake_vectors import FakeVectors


class TestFakeVectors(VectorSuite):
    """The suite, in a dict."""

    @pytest.fixture
    def port(self) -> VectorPort:
        return FakeVectors()
