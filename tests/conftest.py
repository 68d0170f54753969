"""What every test stands on: Ctrl-C means Ctrl-C, and a property may take its time on a busy machine."""

import signal

from hypothesis import settings


def pytest_configure() -> None:
    """An ignored SIGINT (a shell's background job) would be inherited by every process that a test interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("busy-machine", deadline=None)
    settings.load_profile("busy-machine")
