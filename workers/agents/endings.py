"""How a run ends: a pure decision over what its agent did and what was asked of it meanwhile."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from shared.errors import Fenced, FleetError, Permanent, SealKeyUnknown, TaskCancelled
from shared.ledger.suspension import Suspension, merged
from workers.agents.active import HANDED_BACK
from workers.agents.pool import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is written about a run, once.

    Attributes:
        kind: `fenced` writes nothing: the run belongs to another worker.
        error: Of a failed, cancelled or fenced run, and of one that a key is missing for.
        raised: What the agent raised, for Celery's events.
    """

    kind: Literal["succeeded", "failed", "cancelled", "suspended", "fenced"]
    output: Any = None
    error: FleetError | None = None
    suspension: Suspension = HANDED_BACK
    raised: Exception | None = None


def ending_of(
    *, output: Any, error: BaseException | None, reason: Reason | None, suspension: Suspension | None, is_left: bool
) -> Ending:
    """How a run ends.

    Args:
        output: What the agent returned.
        error: What it raised instead.
        reason: Why it was cancelled from outside. What an agent raises after that means nothing; an output counts,
            unless it was the task's owner who cancelled.
        suspension: Set once the run was to be put down.
        is_left: Whether the agent was told so: then what it returned or raised means nothing.
    """
    if isinstance(error, Fenced) or reason == "fenced":
        told = error if isinstance(error, Fenced) else Fenced("this worker lost its place in the ledger")
        return Ending(kind="fenced", error=told)
    if reason == "cancelled":
        return Ending(kind="cancelled", error=TaskCancelled("the task was cancelled while it was running"))
    if reason == "revoked" and (error is not None or is_left):
        return Ending(kind="failed", error=Permanent("revoked by an operator", reason="revoked"))
    if is_left and suspension is not None:
        return Ending(kind="suspended", suspension=suspension)
    if isinstance(error, SealKeyUnknown):  # nothing is wrong with the task: it waits for whoever adds the key
        return Ending(kind="suspended", suspension=Suspension(state="parked", error=error.as_dict()), error=error)
    if error is None:
        return Ending(kind="succeeded", output=output)
    if reason == "drain":
        return Ending(kind="suspended", suspension=merged(HANDED_BACK, suspension or HANDED_BACK))
    recorded = as_recorded(error)
    return Ending(kind="failed", error=recorded, raised=error if isinstance(error, Exception) else recorded)


def as_recorded(error: BaseException) -> FleetError:
    """An agent's failure as the ledger keeps it."""
    if isinstance(error, FleetError):
        return error
    if isinstance(error, SoftTimeLimitExceeded | TimeLimitExceeded):
        kind = "soft" if isinstance(error, SoftTimeLimitExceeded) else "hard"
        return Permanent(f"the {kind} time limit passed", type=type(error).__name__, limit=kind)
    if isinstance(error, asyncio.CancelledError):
        return Permanent("the agent let a cancellation of its own work through", type=type(error).__name__)
    return Permanent(f"{type(error).__name__}: {error}", type=type(error).__name__)
