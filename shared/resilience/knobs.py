"""What can be tuned about guarded calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field


def _demand(knobs: object, names: Sequence[str], *, above: float | None = None, at_least: float | None = None) -> None:
    """Refuse numbers out of range; None means "not set" and passes."""
    for name in names:
        value = getattr(knobs, name)
        if value is None:
            continue
        if above is not None and not value > above:
            raise ValueError(f"{name} must be above {above:g}, not {value!r}")
        if at_least is not None and not value >= at_least:
            raise ValueError(f"{name} must be at least {at_least:g}, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerKnobs:
    """When calls to a key are stopped, and how they come back."""

    failures_in_a_row: int = 5
    """Failures without a success between them that open the breaker."""

    window: int = 100
    """Calls remembered, of the whole fleet: a window per process would make every threshold mean "times processes"."""

    min_calls: int = 20
    """Calls in the window before a rate means anything."""

    failure_rate: float = 0.5
    """Share of failed calls in the window that opens the breaker."""

    slow_call_s: float = 60.0
    """Seconds from which a call counts as slow; the total timeout of a call, so that a slow one is nearly lost."""

    slow_rate: float = 0.8
    """Share of slow calls in the window that opens the breaker."""

    open_s: float = 30.0
    """Seconds without any call after the breaker opened."""

    open_factor: float = 2.0
    """Growth of `open_s` with every round of probes that failed."""

    open_max_s: float = 300.0
    """Longest wait for the next round of probes, before jitter."""

    jitter: float = 0.1
    """Share by which an open time is stretched or shortened at random: endpoints that died together return apart."""

    probes: int = 3
    """Calls let through to see whether the endpoint is back, in the whole fleet together."""

    successes_to_close: int = 2
    """Probes that must succeed; at most `probes`."""

    probe_lease_s: float = 60.0
    """Seconds after which a probe whose process died no longer counts; no shorter than a call may take."""

    last_probe_every_s: float = 1.0
    """Seconds between calls let through an open breaker when the caller has no other endpoint."""

    def __post_init__(self) -> None:
        whole = ("failures_in_a_row", "window", "min_calls", "probes", "successes_to_close")
        _demand(self, whole, at_least=1)
        _demand(self, ("failure_rate", "slow_rate", "slow_call_s", "open_s", "probe_lease_s"), above=0)
        _demand(self, ("open_factor",), at_least=1)
        _demand(self, ("jitter", "last_probe_every_s"), at_least=0)
        for name in ("failure_rate", "slow_rate"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share: at most 1")
        if self.jitter >= 1:
            raise ValueError("jitter is a share: below 1")
        if self.min_calls > self.window:
            raise ValueError("min_calls must fit into window")
        if self.successes_to_close > self.probes:
            raise ValueError("successes_to_close must not exceed probes: the breaker would never close")
        if self.open_max_s < self.open_s:
            raise ValueError("open_max_s must not be shorter than open_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one key, or one tenant at a key, may be asked; None is no limit."""

    requests_per_min: float | None = None
    """Calls a minute."""

    input_tokens_per_min: float | None = None
    """Tokens sent a minute, reserved as estimated and corrected when the call has ended."""

    output_tokens_per_min: float | None = None
    """Tokens received a minute; providers count what was asked for (max_tokens), so that is reserved."""

    concurrency: int | None = None
    """Calls under way at once, in the whole fleet."""

    burst_s: float = 1.0
    """Seconds of each rate that may be used at once. 1 s keeps every minute within 1.7 % of its limit; a call larger
    than the burst passes when the bucket is full and leaves a debt."""

    def __post_init__(self) -> None:
        _demand(self, ("requests_per_min", "input_tokens_per_min", "output_tokens_per_min", "burst_s"), above=0)
        _demand(self, ("concurrency",), at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptKnobs:
    """How concurrency follows an endpoint that says it is overloaded (429, 503, 529)."""

    enabled: bool = True
    """Whether it does."""

    factor: float = 0.7
    """What is left of the calls under way after an overload; once for all calls that were under way together."""

    floor: int = 1
    """Calls that stay allowed. One is added for every `limit` successes until the cut is made good."""

    def __post_init__(self) -> None:
        _demand(self, ("factor",), above=0)
        _demand(self, ("floor",), at_least=1)
        if self.factor >= 1:
            raise ValueError("factor must be below 1: it cuts")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudgetKnobs:
    """How many retries the whole fleet may send to a key: at most cap + floor_per_s * seconds + ratio * first tries."""

    ratio: float = 0.2
    """Retries earned by a first attempt."""

    floor_per_s: float = 1.0
    """Retries a second that are always there: a key that is rarely called may retry as well."""

    cap: float = 10.0
    """Retries that can be saved up."""

    def __post_init__(self) -> None:
        _demand(self, ("ratio", "floor_per_s"), at_least=0)
        _demand(self, ("cap",), at_least=1)
        if self.ratio > 1:
            raise ValueError("ratio must be at most 1: more than one retry a call is a storm")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRules:
    """Everything that guards one key."""

    breaker: BreakerKnobs = field(default_factory=BreakerKnobs)
    limits: Limits = field(default_factory=Limits)
    """Of the key as a whole."""
    tenant_limits: Limits = field(default_factory=Limits)
    """Of each tenant at this key."""
    adapt: AdaptKnobs = field(default_factory=AdaptKnobs)
    retry_budget: RetryBudgetKnobs = field(default_factory=RetryBudgetKnobs)
    not_before_max_s: float = 3600.0
    """Longest Retry-After that is believed."""

    def __post_init__(self) -> None:
        _demand(self, ("not_before_max_s",), above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryKnobs:
    """When and how often a failed call is tried again."""

    retries: int = 3
    """Tries after the first."""

    first_wait_s: float = 1.0
    """Upper bound of the first wait; every wait is uniform between 0 and its bound (full jitter)."""

    factor: float = 2.0
    """Growth of the bound from wait to wait."""

    cap_s: float = 30.0
    """The bound never grows beyond this. It does not shorten a Retry-After."""

    suspend_after_s: float = 5.0
    """A longer wait is not slept: `RetryLater` lets the run give up its slot."""

    def __post_init__(self) -> None:
        _demand(self, ("retries", "first_wait_s", "suspend_after_s"), at_least=0)
        _demand(self, ("factor",), at_least=1)
        _demand(self, ("cap_s",), above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResilienceKnobs:
    """FLEET_RESILIENCE_*: how a process gets on with the Redis that the fleet shares, and without it."""

    timeout_s: float = 0.25
    """Seconds for one round trip; then the call goes on with what this process knows."""

    rest_s: float = 1.0
    """Seconds for which Redis is not asked again after it failed."""

    max_connections: int = 32
    """Connections to Redis per process."""

    alone_share: float = 0.25
    """Share of each limit, and of what is left of each budget, that one process takes while Redis is away: best is
    1 / processes. A larger share may overspend then, a smaller one makes tasks wait."""

    def __post_init__(self) -> None:
        _demand(self, ("timeout_s", "alone_share"), above=0)
        _demand(self, ("rest_s",), at_least=0)
        _demand(self, ("max_connections",), at_least=1)
        if self.alone_share > 1:
            raise ValueError("alone_share is a share: at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKnobs(ResilienceKnobs):
    """Where the fleet keeps what it knows of its endpoints."""

    redis_url: str = "redis://127.0.0.1:6379/1"
    """The Redis that all processes share."""

    prefix: str = "fleet"
    """The start of every key there."""

    def __post_init__(self) -> None:
        ResilienceKnobs.__post_init__(self)
        if not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("redis_url must start with redis://, rediss:// or unix://")
