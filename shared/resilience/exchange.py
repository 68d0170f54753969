"""What a gate asks its store, what the store answers, and the two protocols of stores."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from shared.resilience.circuit import Mode, Operate
from shared.resilience.knobs import KeyRules
from shared.resilience.outcome import Learn
from shared.resilience.spending import Budget, Left, Short, Spent

Denial = Literal[
    "", "breaker", "not_before", "requests", "input_tokens", "output_tokens", "concurrency", "retry_budget", "budget",
    "budget_held", "budget_share",
]  # fmt: skip
Scope = Literal["key", "tenant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """May this call be sent? With everything it is expected to use."""

    key: str
    permit: str
    """Unique; the lease is known by it."""
    rules: KeyRules
    tenant: str = "default"
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    budgets: tuple[Budget, ...] = ()
    attempt: int = 1
    lease_s: float = 60.0
    is_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Yes (`denial` is empty), or no, why and until when."""

    denial: Denial = ""
    scope: Scope = "key"
    mode: Mode = "closed"
    reason: str = ""
    retry_after_s: float | None = None
    generation: int = 0
    is_probe: bool = False
    at_s: float = 0.0
    """The store's clock."""
    spent: tuple[Spent, ...] = ()
    """Of each budget, after the charge."""
    short: Short | None = None
    shared: bool = True
    """Whether the fleet's store answered; False: this process alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSeen:
    """What a provider's headers say is left, and in how many seconds it is full again."""

    requests_left: float | None = None
    requests_reset_s: float | None = None
    input_tokens_left: float | None = None
    input_tokens_reset_s: float | None = None
    output_tokens_left: float | None = None
    output_tokens_reset_s: float | None = None

    def left(self) -> tuple[float | None, float | None, float | None]:
        """In the order of the lanes' dimensions."""
        return (self.requests_left, self.input_tokens_left, self.output_tokens_left)

    def resets_s(self) -> tuple[float | None, float | None, float | None]:
        """In the order of the lanes' dimensions."""
        return (self.requests_reset_s, self.input_tokens_reset_s, self.output_tokens_reset_s)


NOTHING_SEEN = LimitsSeen()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How a call ended and what it really used."""

    ask: Ask
    answer: Answer | None
    """What it was admitted with; None: by another store, so nothing was reserved in this one."""
    learn: Learn
    seconds: float
    tokens_in: int
    tokens_out: int
    cost: float
    was_sent: bool = True
    retry_after_s: float | None = None
    overloaded: bool = False
    limits_seen: LimitsSeen = NOTHING_SEEN
    jitter: float = 0.0


def unsent(ask: Ask, answer: Answer) -> Settlement:
    """Gives everything back: the call was never sent."""
    return Settlement(
        ask=ask, answer=answer, learn="neutral", seconds=0.0, tokens_in=0, tokens_out=0, cost=0.0, was_sent=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a settlement or an operator changed."""

    old: Mode
    new: Mode
    reason: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStats:
    """One key, for operators and metrics."""

    name: str
    state: Mode = "closed"
    failure_count: int = 0
    """Failures in a row."""
    total_calls: int = 0
    """Calls in the window."""
    failure_rate: float = 0.0
    avg_latency_s: float = 0.0
    retry_after_s: float | None = 0.0
    """None: not before an operator says so."""
    slow_rate: float = 0.0
    reason: str = ""
    generation: int = 0
    rounds: int = 0
    probes: int = 0
    """Probes under way."""
    in_flight: int = 0
    concurrency: int | None = None
    """Calls that may be under way now; None: any number."""
    not_before_s: float = 0.0
    """Seconds for which the provider asked not to be called."""
    requests_left: float | None = None
    input_tokens_left: float | None = None
    output_tokens_left: float | None = None
    retries_left: float = 0.0
    shared: bool = field(default=True)
    """Whether the fleet shares these figures; False: this process knows only its own."""

    def as_dict(self) -> dict[str, object]:
        """As a plain dict."""
        return {name: getattr(self, name) for name in self.__slots__}


class GateStore(Protocol):
    """Where a gate's state lives; each method is one round trip."""

    async def admit(self, ask: Ask) -> Answer:
        """Check everything and reserve everything, or reserve nothing."""

    async def settle(self, settlement: Settlement) -> Settled:
        """Book how a call ended."""

    async def operate(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """Do what an operator says."""

    async def stats(self, key: str, rules: KeyRules) -> KeyStats:
        """Look, without changing anything."""

    async def left(self, tenant: str, budgets: tuple[Budget, ...]) -> tuple[Left, ...]:
        """What remains of budgets."""

    async def charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> None:
        """Charge without asking."""

    async def aclose(self) -> None:
        """Close what the store opened."""


class BlockingStore(Protocol):
    """The part of a store that callers without an event loop need."""

    def admit_now(self, ask: Ask) -> Answer:
        """As `GateStore.admit`."""

    def settle_now(self, settlement: Settlement) -> Settled:
        """As `GateStore.settle`."""

    def operate_now(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """As `GateStore.operate`."""

    def stats_now(self, key: str, rules: KeyRules) -> KeyStats:
        """As `GateStore.stats`."""

    def close(self) -> None:
        """Close what the store opened."""
