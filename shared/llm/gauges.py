"""How the gate's figures become gauges."""

import math
from collections.abc import Iterable

from shared.resilience.exchange import KeyStats
from shared.resilience.spending import Left
from shared.telemetry import llm_metrics as metrics

STATES = ("closed", "open", "half-open", "forced-open", "disabled")


def show(stats: KeyStats) -> None:
    """Set the gauges of one key."""
    endpoint, _, model = stats.name.partition(":")
    for state in STATES:
        metrics.STATE.labels(endpoint, model, state).set(stats.state == state)
    metrics.FAILURE_RATE.labels(endpoint, model).set(stats.failure_rate)
    metrics.LATENCY_SECONDS.labels(endpoint, model).set(stats.avg_latency_s)
    wait_s = math.inf if stats.retry_after_s is None else stats.retry_after_s
    metrics.RETRY_AFTER_SECONDS.labels(endpoint, model).set(wait_s)
    metrics.NOT_BEFORE_SECONDS.labels(endpoint, model).set(stats.not_before_s)
    metrics.IN_FLIGHT.labels(endpoint, model).set(stats.in_flight)
    metrics.CONCURRENCY.labels(endpoint, model).set(-1 if stats.concurrency is None else stats.concurrency)
    metrics.RETRIES_LEFT.labels(endpoint, model).set(stats.retries_left)
    rates = {
        "requests": stats.requests_left,
        "input_tokens": stats.input_tokens_left,
        "output_tokens": stats.output_tokens_left,
    }
    for rate, left in rates.items():
        if left is not None:
            metrics.LEFT.labels(endpoint, model, rate).set(left)
    metrics.SHARED.set(stats.shared)


def show_left(tenant: str, budgets: Iterable[Left]) -> None:
    """Set the gauges of a tenant's budgets."""
    for one in budgets:
        for kind, left in (("tokens", one.tokens), ("money", one.money)):
            if left is not None:
                metrics.BUDGET_LEFT.labels(tenant, one.level, one.name, kind).set(left)
