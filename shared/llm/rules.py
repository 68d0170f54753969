"""From the configuration to the knobs of whoever enforces it: adapters, breakers, limits, retries, budgets."""

import json
from collections.abc import Callable, Iterator

from pydantic import SecretStr

from shared.llm.config import BreakerPolicy, Budget, Endpoint, Limits, LLMConfig, Model, RetryPolicy
from shared.llm.knobs import LLMKnobs
from shared.resilience import knobs as guards
from shared.resilience.spending import Budget as Purse

DAY_S = 86_400.0
MONTH_S = 30 * DAY_S
RUN_KEPT_S = 32 * DAY_S
"""How long the purse of a run without a deadline is remembered after its last call."""


def adapter_knobs(endpoint: Endpoint, *, key: SecretStr) -> LLMKnobs:
    """What an adapter needs to talk to an endpoint."""
    times = endpoint.timeouts
    return LLMKnobs(
        base_url=endpoint.base_url,
        dialect=endpoint.dialect,
        api_key=key,
        connect_timeout_s=times.connect_s,
        read_timeout_s=times.total_s,
        first_token_timeout_s=times.first_token_s,
        idle_timeout_s=times.idle_s,
        min_tokens_per_s=times.min_tokens_per_s,
        throughput_window_s=times.throughput_window_s,
        total_timeout_s=times.total_s,
        max_tokens_field=endpoint.max_tokens_field,
        stream_answers=endpoint.stream_answers,
        stream_usage=endpoint.stream_usage,
        key_header=endpoint.key_header,
        extra_body=json.dumps(endpoint.extra_body),
        max_connections=endpoint.max_connections,
        keepalive_s=endpoint.keepalive_s,
        proxy_url=endpoint.proxy_url,
    )


def key_rules(config: LLMConfig) -> Callable[[str], guards.KeyRules]:
    """What guards each key; keys that the file does not list have the rules of their endpoint, without limits."""
    listed = {
        config.key(name): rules_of(config.endpoints[model.endpoint], model) for name, model in config.models.items()
    }

    def rules(key: str) -> guards.KeyRules:
        if key not in listed:
            endpoint = config.endpoints.get(key.partition(":")[0])
            return guards.KeyRules() if endpoint is None else rules_of(endpoint, None)
        return listed[key]

    return rules


def rules_of(endpoint: Endpoint, model: Model | None) -> guards.KeyRules:
    """The rules of a model at an endpoint. Raises: ValueError for numbers that contradict each other."""
    return guards.KeyRules(
        breaker=_breaker(endpoint.breaker, lease_s=lease_s(endpoint)),
        limits=_limits(model.limits) if model is not None else guards.Limits(),
        tenant_limits=_limits(model.tenant_limits) if model is not None else guards.Limits(),
        retry_budget=guards.RetryBudgetKnobs(ratio=endpoint.retry.budget_ratio),
    )


def lease_s(endpoint: Endpoint) -> float:
    """How long a call may hold its place: as long as it may take, and a little more to say that it ended."""
    return endpoint.timeouts.total_s + 5.0


def retry_knobs(policy: RetryPolicy, *, has_fallback: bool) -> guards.RetryKnobs:
    """How often one model is tried; fewer times when another is next."""
    return guards.RetryKnobs(
        retries=min(policy.retries, policy.retries_before_fallback) if has_fallback else policy.retries,
        first_wait_s=policy.base_s,
        factor=policy.factor,
        cap_s=policy.cap_s,
        suspend_after_s=policy.suspend_after_s,
    )


def purses(
    config: LLMConfig, *, tenant: str, agent: str, run: str | None, left_s: float | None = None
) -> Iterator[Purse]:
    """The budgets that a call of this run draws on, narrowest first; unbounded ones are left out."""
    policy, bounds = config.policy(agent), config.budgets
    theirs = config.tenants.get(tenant)
    of_tenant = theirs.budget if theirs is not None and theirs.budget is not None else bounds.tenant
    if run is not None:
        yield from run_purse(config, agent=agent, run=run, left_s=left_s)
    yield from _purse("agent", agent, policy.budget or bounds.agent, period_s=DAY_S)
    yield from _purse("tenant", tenant, of_tenant, period_s=MONTH_S)
    yield from _purse("day", tenant, bounds.day, period_s=DAY_S)


def run_purse(config: LLMConfig, *, agent: str, run: str, left_s: float | None = None) -> Iterator[Purse]:
    """The budget of one run, which the runs that it starts draw on as well; none if it is unbounded.

    Args:
        left_s: To the deadline: however long the run sleeps until then, it does not wake with a full purse.
    """
    budget = config.policy(agent).run_budget or config.budgets.run
    if budget.is_bounded:
        ttl_s = RUN_KEPT_S if left_s is None else max(RUN_KEPT_S, left_s + DAY_S)
        yield Purse(level="run", name=run, tokens=budget.tokens, money=budget.money, ttl_s=ttl_s)


def bounds_runs(config: LLMConfig) -> bool:
    """Whether the runs of any agent have a budget."""
    own = [policy.run_budget for policy in config.agents.values() if policy.run_budget is not None]
    return any(budget.is_bounded for budget in (config.budgets.run, *own))


def _purse(level: str, name: str, budget: Budget, *, period_s: float) -> Iterator[Purse]:
    if budget.is_bounded:
        ttl_s = period_s + DAY_S
        yield Purse(level=level, name=name, tokens=budget.tokens, money=budget.money, period_s=period_s, ttl_s=ttl_s)


def _breaker(policy: BreakerPolicy, *, lease_s: float) -> guards.BreakerKnobs:
    return guards.BreakerKnobs(
        failures_in_a_row=policy.failure_threshold,
        window=policy.window,
        min_calls=policy.min_calls,
        failure_rate=policy.failure_rate,
        slow_call_s=policy.slow_call_s,
        slow_rate=policy.slow_call_rate,
        open_s=policy.recovery_timeout_s,
        open_max_s=policy.max_recovery_timeout_s,
        probes=policy.half_open_max_calls,
        successes_to_close=policy.success_threshold,
        probe_lease_s=lease_s,
    )


def _limits(limits: Limits) -> guards.Limits:
    return guards.Limits(
        requests_per_min=limits.requests_per_min,
        input_tokens_per_min=limits.input_tokens_per_min,
        output_tokens_per_min=limits.output_tokens_per_min,
        concurrency=limits.concurrency,
    )
