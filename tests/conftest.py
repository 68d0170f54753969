"""What every test stands on: Ctrl-C means Ctrl-C, and a property may take its time on a busy machine."""

import signal
from typing import Any

import structlog
from hypothesis import settings


def pytest_configure() -> None:
    """An ignored SIGINT (a shell's background job) would be inherited by every process that a test interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("busy-machine", deadline=None)
    settings.load_profile("busy-machine")


def pytest_sessionstart() -> None:
    """A command run in this process sets up its logs; loggers that are bound for good then could not be captured."""
    configure = structlog.configure

    def open_for_capture(*args: Any, **kwargs: Any) -> None:
        configure(*args, **{**kwargs, "cache_logger_on_first_use": False})

    structlog.configure = open_for_capture
