"""`fleet llm status` as people see it, and which fleets bring a model of their own."""

from typing import Any, cast

import pytest
from rich.console import Console

from shared.llm.config_file import read_text
from shared.llm.rules import key_rules
from shared.resilience.gate import Gate
from shared.resilience.memory_store import MemoryStore
from workers.ops.llm_commands import Desk, facts, keys_of
from workers.ops.llm_screen import table
from workers.ops.main import _wish


def one(**changes: Any) -> dict[str, Any]:
    return {
        "model": "big", "endpoint": "first", "chains": {"default": 1}, "limits": {}, "state": "closed",
        "failure_rate": 0.0, "total_calls": 0, "avg_latency_s": 0.0, "retry_after_s": 0.0, "not_before_s": 0.0,
        "in_flight": 0, "concurrency": None, "reason": "", "shared": True,
        "spent_today": {"calls": 0, "input_tokens": 0, "output_tokens": 0, "money": 0.0}, **changes,
    }  # fmt: skip


def shown(*models: dict[str, Any], **more: Any) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table({"currency": "EUR", "models": list(models), **more}))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_a_model_that_nobody_has_asked_yet_has_no_figures() -> None:
    assert shown(one())[1] == "first big closed default 1 – – 0 – – –"


def test_a_busy_model_shows_failures_limits_and_spending() -> None:
    line = shown(
        one(
            chains={"default": 1, "cheap": 2}, failure_rate=0.25, total_calls=20, avg_latency_s=0.5, in_flight=3,
            concurrency=40, limits={"requests_per_min": 600, "input_tokens_per_min": 200_000, "concurrency": 40},
            spent_today={"calls": 1, "input_tokens": 12_000, "output_tokens": 400, "money": 0.001},
        )
    )[1]  # fmt: skip
    assert line == (
        "first big closed default 1, cheap 2 5 of 20 0.50 s 3 of 40 600 requests, 200k tokens in – "
        "1 call, 12k tokens, < 0.01 EUR"
    )


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"state": "open", "retry_after_s": 12.3}, "in 12 s"),
        ({"state": "open"}, "now"),
        ({"state": "half-open"}, "now"),
        ({"state": "forced-open"}, "by hand"),
        ({"state": "disabled", "retry_after_s": 60}, "in 60 s"),
        ({"state": "closed", "not_before_s": 5.0}, "in 5 s"),
    ],
)
def test_when_a_model_is_asked_again_is_said(changes: dict[str, Any], again: str) -> None:
    lines = shown(one(reason="5 failures in a row", **changes))
    assert f" {again} " in lines[1]
    assert lines[2] == f"first big is {changes['state']}: 5 failures in a row"


def test_what_is_left_is_told_for_each_budget_of_a_tenant() -> None:
    budgets = [
        {"level": "agent", "name": "chat", "tokens_left": None, "money_left": 5.0},
        {"level": "tenant", "name": "acme", "tokens_left": 999_874, "money_left": None},
        {"level": "day", "name": "acme", "tokens_left": 90, "money_left": 0.001},
    ]
    assert shown(one(), tenant="acme", budgets=budgets)[2:] == [
        "Left to tenant acme:",
        "agent chat, today: 5.00 EUR",
        "all agents, in 30 days: 1000k tokens",
        "all agents, today: 90 tokens and < 0.01 EUR",
    ]
    assert shown(one(), tenant="acme", budgets=[])[2:] == ["Tenant acme has no budget."]


@pytest.mark.parametrize(
    ("variable", "own"), [("FLEET_LLM_CONFIG", False), ("FLEET_LLM_BASE_URL", False), ("FLEET_LLM_MODEL", True)]
)
def test_a_fleet_brings_a_model_of_its_own_unless_it_is_told_of_another(
    monkeypatch: pytest.MonkeyPatch, variable: str, own: bool
) -> None:
    for name in ("FLEET_LLM_CONFIG", "FLEET_LLM_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "x")
    assert _wish("embedded", workers=1, replicas=1, sync=False, fleet=True).model is own


OPEN_FILE = """\
version: 1
endpoints: {first: {base_url: "http://one.test/v1"}, second: {base_url: "http://two.test/v1"}}
models: {big: {endpoint: first}, small: {endpoint: second}}
chains: {default: [big, small]}
unlisted_models: true
"""


class NoBook:
    """A Redis in which nothing was spent."""

    async def hgetall(self, name: str) -> dict[bytes, bytes]:
        return {}


async def test_an_operators_switch_of_an_endpoint_reaches_the_models_that_nobody_listed() -> None:
    config = read_text(OPEN_FILE, source="llm.yaml", environment={}).config
    assert keys_of(config, "first") == ["first:*", "first:big"]
    assert (keys_of(config, "first:*"), keys_of(config, "small")) == (["first:*"], ["second:small"])
    gate = Gate(MemoryStore(), key_rules(config))
    desk = Desk(cast(Any, NoBook()), config, gate)
    assert [one["model"] for one in (await facts(desk))["models"]] == ["big", "small"]
    for key in keys_of(config, "first"):
        await gate.force_open(key, reason="a drill")
    shown = {one["model"]: one["state"] for one in (await facts(desk))["models"]}
    assert shown == {"big": "forced-open", "small": "closed", "any other": "forced-open"}
