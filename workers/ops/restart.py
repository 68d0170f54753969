"""Whether a server that exited is started again: a pure decision with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workers.ops.knobs import RestartPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """What is known about a server's deaths (monotonic seconds)."""

    times: Sequence[float]
    now: float
    suspended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do about an exit, and why."""

    action: Literal["restart", "hold", "give_up"]
    wait_s: float
    reason: str


def decide(policy: RestartPolicy, exits: Exits) -> Decision:
    """Choose between another start, holding still for a drill, and giving up.

    Returns: `restart` after wait_s (doubling per exit in the window), `hold` while suspended, or `give_up`.
    """
    recent = sum(1 for at in exits.times if exits.now - at < policy.window_s)
    if exits.suspended:
        return Decision(action="hold", wait_s=0.0, reason="it exited and restarts are suspended")
    if recent >= policy.give_up_after:
        reason = f"it exited {recent} times within {policy.window_s:g} s; giving up"
        return Decision(action="give_up", wait_s=0.0, reason=reason)
    wait_s = min(policy.max_wait_s, policy.first_wait_s * 2 ** max(0, recent - 1))
    return Decision(action="restart", wait_s=wait_s, reason=f"exit {recent} in the window; next try in {wait_s:g} s")
