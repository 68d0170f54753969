"""What those who watch Celery are told of a run's end: no secrets, and what it means that a run was put down."""

from typing import Any

from shared.telemetry.redaction import redact_text

LONGEST = 500
"""Characters of a failure: whoever wants more asks the ledger."""
Event = tuple[str, dict[str, Any]]


def failed(told: str, traceback: str = "") -> Event:
    """A failure, without what looks like a secret in its text."""
    return "task-failed", {"exception": redact_text(told)[:LONGEST], "traceback": redact_text(traceback)}


def left(state: str) -> Event | None:
    """A run that ended while its task goes on, or for good because somebody wanted it.

    Celery has no word for waiting: what will run again is "retried", as after its own `self.retry`.
    """
    if state == "cancelled":
        return "task-revoked", {"terminated": True, "signum": None, "expired": False}
    if state in ("waiting", "queued", "parked"):
        return "task-retried", {"exception": f"{state}: it goes on later", "traceback": ""}
    return None
