"""What can be tuned about logs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LogKnobs:
    """FLEET_LOG_*."""

    style: Literal["json", "console"] = "json"
    """One JSON object a line for machines, or a console line for people."""
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The lowest level that is printed."""
    redact: str = ""
    """Functions `module:function`, separated by commas, that take an event's fields and return what may be written.
    They come before the built-in rules (secret names, tokens, keys, URLs with passwords), which are always on."""
