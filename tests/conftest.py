"""Ctrl-C means Ctrl-C in every test, also where the suite runs in the background of a shell, which ignores it."""

import signal


def pytest_configure() -> None:
    """An ignored SIGINT would be inherited by every process that a test starts and interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
