"""What a breaker learns from a call."""

from typing import Literal

Learn = Literal["ok", "failure", "neutral"]
"""`neutral`: nothing about the endpoint's health (cancelled, refused for its content, asked to slow down)."""

LEARNS: tuple[Learn, ...] = ("ok", "failure", "neutral")
