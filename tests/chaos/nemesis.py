"""The nemesis: a plan of deaths drawn from a seed, and the hand that carries it out."""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from workers.ops.background import BackgroundSupervisor
from workers.ops.spec import ServerFailed

Deed = Literal["kill", "freeze", "restart"]
DEEDS: tuple[Deed, ...] = ("kill", "freeze", "restart")
BROKER = "rabbitmq"
PAUSE_S = (1.0, 4.0)
FREEZE_S = {"worker": (0.5, 5.0), "keeper": (1.0, 8.0), BROKER: (0.5, 4.0)}
"""Around the age at which workers count as dead: some wake up in time, others find that they were buried."""
WEIGHTS = {"worker": 6, "keeper": 2, BROKER: 1}


@dataclass(frozen=True, slots=True)
class Strike:
    """One thing that happens, so many seconds after the storm began."""

    at_s: float
    whom: str
    deed: Deed
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:6.1f} s  {self.deed} {self.whom}{lasting}"


def plan(seed: int, *, lasts_s: float, victims: Sequence[str]) -> list[Strike]:
    """What happens when: the same for the same seed. First each deed is done to some worker.

    Args:
        victims: Names of servers; `worker-2` is a worker.
    """
    rng = random.Random(seed)
    weights = [WEIGHTS[_kind(name)] for name in victims]
    workers = [name for name in victims if _kind(name) == "worker"]
    first = list(zip(rng.sample(workers, len(DEEDS)), rng.sample(DEEDS, len(DEEDS)), strict=True))
    strikes, at_s = [], rng.uniform(*PAUSE_S)
    while at_s < lasts_s:
        [whom] = rng.choices(victims, weights)
        deed: Deed = rng.choices(DEEDS, (5, 4, 2))[0]
        if first:
            whom, deed = first.pop()
        for_s = rng.uniform(*FREEZE_S[_kind(whom)]) if deed == "freeze" else 0.0
        strikes.append(Strike(at_s, whom, deed, for_s))
        at_s += rng.uniform(*PAUSE_S)
    return strikes


class Nemesis:
    """Carries a plan out. A victim that is down already is only brought back.

    Attributes:
        landed: How many strikes of each kind hit what was up.
    """

    def __init__(self, servers: BackgroundSupervisor, *, say: Callable[[str], None]) -> None:
        self.landed: Counter[Deed] = Counter()
        self._servers = servers
        self._say = say
        self._thaw_at: dict[str, float] = {}

    def rage(self, strikes: Sequence[Strike]) -> None:
        """Strike after strike; a frozen victim thaws in between."""
        began = time.monotonic()
        for strike in strikes:
            self._wait_until(began + strike.at_s)
            self._say(str(strike))
            self._strike(strike)

    def make_up(self, victims: Sequence[str]) -> None:
        """Each kind of strike that has found nobody up yet finds one now."""
        for deed in DEEDS:
            if not self.landed[deed]:
                self._revive(victims[0])
                self._servers.wait_ready(victims[0])
                self._strike(Strike(0.0, victims[0], deed))

    def let_all_get_well(self, victims: Sequence[str]) -> None:
        """Thaw and start everything, and wait until it is ready."""
        for name in list(self._thaw_at):
            self._thaw(name)
        for name in victims:
            self._revive(name)
            self._servers.wait_ready(name)

    def _strike(self, strike: Strike) -> None:
        if strike.whom in self._thaw_at:
            self._thaw(strike.whom)
        self._revive(strike.whom)
        with contextlib.suppress(ServerFailed):  # it is just coming back from the last blow
            if strike.deed == "kill":
                self._servers.kill(strike.whom)
            elif strike.deed == "freeze":
                self._servers.freeze(strike.whom)
                self._thaw_at[strike.whom] = time.monotonic() + strike.for_s
            elif self._servers.status(strike.whom) == "ready":
                self._servers.restart(strike.whom)
            else:
                return
            self.landed[strike.deed] += 1

    def _wait_until(self, moment: float) -> None:
        while (now := time.monotonic()) < moment:
            for name, at in list(self._thaw_at.items()):
                if at <= now:
                    self._thaw(name)
            time.sleep(0.05)

    def _thaw(self, name: str) -> None:
        del self._thaw_at[name]
        with contextlib.suppress(ServerFailed):  # it died frozen
            self._servers.thaw(name)

    def _revive(self, name: str) -> None:
        """The supervisor gives up on what dies too often; the storm does not."""
        if self._servers.status(name) in ("failed", "held"):
            self._servers.start(name)


def _kind(name: str) -> str:
    return name.partition("-")[0]
