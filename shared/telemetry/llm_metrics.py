"""Prometheus metrics of the LLM plane, in base units, declared once."""

from functools import cache
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge, Histogram

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

CALLS = Counter("fleet_llm_calls_total", "Requests to models that ended, by how", ["endpoint", "model", "kind"])
CALL_SECONDS = Histogram(
    "fleet_llm_call_seconds", "One request to a model", ["endpoint", "model"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120),
)  # fmt: skip
REFUSED = Counter(
    "fleet_llm_refused_total",
    "Calls that were not let through: breaker, limits, budgets",
    ["endpoint", "model", "cause"],
)
RETRIES = Counter("fleet_llm_retries_total", "Tries after the first", ["endpoint", "model"])
RETRY_WAIT_SECONDS = Counter("fleet_llm_retry_wait_seconds_total", "Slept before them", ["endpoint", "model"])
TOKENS = Counter(
    "fleet_llm_tokens_total",
    "Tokens of calls, as reserved before and as used",
    ["endpoint", "model", "direction", "basis"],
)
COST = Counter("fleet_llm_cost_total", "Money spent, in the configuration's currency", ["endpoint", "model"])
ANSWERS = Counter(
    "fleet_llm_answers_total",
    "Answers given to agents: level, who gave them, and why it was not the first model: none, or what became of it",
    ["agent", "level", "endpoint", "reason"],
)
PLAIN_ANSWERS = Counter(
    "fleet_llm_plain_answers_total", "Answers of an agent that had to do without (L3)", ["agent", "missing"]
)
COULD_NOT_ACT = Counter(
    "fleet_llm_could_not_act_total", "Tasks that had to act and could not, by what was missing", ["agent", "missing"]
)
PASSED = Counter(
    "fleet_llm_passed_total", "Models of a chain that were passed over, by why", ["endpoint", "model", "why"]
)
ENDED_WITHOUT = Counter("fleet_llm_unanswered_total", "Calls that ended as an error, by its code", ["agent", "code"])
ANSWER_SECONDS = Histogram(
    "fleet_llm_answer_seconds", "From an agent's question to its answer, all tries included", ["agent"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300),
)  # fmt: skip
CACHE = Counter("fleet_llm_cache_total", "The answer cache: hit, miss, kept, unavailable", ["result"])
CACHED_AGE_SECONDS = Histogram(
    "fleet_llm_cached_age_seconds", "Age of cached answers when given", buckets=(1, 60, 300, 3600, 21600, 86400, 604800)
)
ALERTS = Counter("fleet_llm_endpoint_disabled_total", "Endpoints taken out: quota, payment, key", ["endpoint", "kind"])

STATE = Gauge("fleet_llm_breaker_state", "1 for the state that the breaker is in", ["endpoint", "model", "state"])
FAILURE_RATE = Gauge("fleet_llm_failure_ratio", "Failures in the breaker's window", ["endpoint", "model"])
LATENCY_SECONDS = Gauge("fleet_llm_latency_seconds", "Average over the breaker's window", ["endpoint", "model"])
RETRY_AFTER_SECONDS = Gauge(
    "fleet_llm_retry_after_seconds",
    "Until calls are let through again; +Inf: not before an operator says so",
    ["endpoint", "model"],
)
IN_FLIGHT = Gauge("fleet_llm_in_flight", "Calls of the whole fleet", ["endpoint", "model"])
CONCURRENCY = Gauge(
    "fleet_llm_concurrency_limit", "Calls allowed at the same time; -1: no limit", ["endpoint", "model"]
)
NOT_BEFORE_SECONDS = Gauge(
    "fleet_llm_not_before_seconds", "For which the provider asked not to be called", ["endpoint", "model"]
)
LEFT = Gauge("fleet_llm_limit_left", "What is left of each limited rate", ["endpoint", "model", "of"])
RETRIES_LEFT = Gauge("fleet_llm_retries_left", "Retries that the fleet may still send", ["endpoint", "model"])
BUDGET_LEFT = Gauge(
    "fleet_llm_budget_left", "Of the budgets of configured tenants, in tokens or money",
    ["tenant", "level", "name", "kind"],
)  # fmt: skip
SHARED = Gauge("fleet_llm_state_is_shared", "0 while Redis is away and every process decides for itself", [])


@cache
def _of(metric: Any, labels: tuple[str, ...]) -> Any:
    return metric.labels(*labels)


def of(metric: Metric, *labels: str) -> Metric:
    """One metric's child, looked up without the 5 µs that `labels` takes: a guarded call touches ten of them."""
    child: Metric = _of(metric, labels)
    return child
