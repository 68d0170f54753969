"""Commands that tests type within their own process: they leave nothing behind for later tests."""

from structlog.testing import capture_logs

from shared.resilience import fail_open
from tests.integration.terminal import fleet


def test_a_command_typed_within_a_test_leaves_the_logs_of_later_tests_as_they_were() -> None:
    assert fleet("llm", "status").returncode == 2
    with capture_logs() as logs:
        fail_open.log.warning("resilience.store_away")
    assert [one["event"] for one in logs] == ["resilience.store_away"]
