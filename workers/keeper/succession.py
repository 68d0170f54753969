"""When a standby takes the lead from a leader that still holds the lock: a pure decision on what was seen."""

from dataclasses import dataclass
from typing import Literal

from shared.ledger.terms import Look


@dataclass(frozen=True, slots=True)
class Succession:
    """What the standby does now, and why."""

    action: Literal["stand", "wait", "depose"]
    reason: str


class Watch:
    """A standby's memory of the leader's last sign of life, by its own clock: no jump of any other clock deposes.

    Args:
        stale_after_s: Seconds without a sign of life after which the leader counts as frozen.
    """

    def __init__(self, *, stale_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._seen: Look | None = None
        self._since = 0.0

    def see(self, look: Look, *, now_s: float) -> Succession:
        """Judge one look at the office.

        Args:
            now_s: Monotonic seconds.
        """
        if look != self._seen:
            self._seen, self._since = look, now_s
        silent_s = now_s - self._since
        if look.lock_pid is None:
            return Succession("stand", "nobody leads")
        if silent_s < self._stale_after_s:
            return Succession("wait", f"{look.holder} leads term {look.epoch}, silent for {silent_s:.1f} s")
        return Succession(
            "depose",
            f"{look.holder} leads term {look.epoch} but gave no sign of life for {silent_s:.1f} s, "
            f"more than {self._stale_after_s:g} s",
        )
