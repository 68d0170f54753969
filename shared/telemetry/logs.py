"""structlog for every process: one event name `room.past_event`, keys with units, JSON or a console line."""

import logging
import sys
from collections.abc import Sequence
from typing import Literal

import structlog

from shared.telemetry.redaction import Hook, Redaction


def setup_logs(*, style: Literal["json", "console"] = "json", level: str = "INFO", hooks: Sequence[Hook] = ()) -> None:
    """Send structlog and the standard library's loggers to stderr, one line per event, without secrets.

    Args:
        style: `json` for machines, `console` for people.
        level: The lowest level that is printed, as the `logging` module names it.
        hooks: Asked before the built-in redaction; `load_hooks(knobs.redact)`.
    """
    redaction = Redaction(hooks)
    renderer = structlog.processors.JSONRenderer() if style == "json" else structlog.dev.ConsoleRenderer(colors=False)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, redaction, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one write a line: other loggers write there too
        cache_logger_on_first_use=True,
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line for every model call
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(redaction.formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
