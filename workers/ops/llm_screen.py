"""How the language models are shown to people."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

STYLES = {
    "closed": "green",
    "half-open": "yellow",
    "open": "bold red",
    "forced-open": "bold red",
    "disabled": "magenta",
}
NOTHING = "–"
UNITS = {"requests_per_min": "requests", "input_tokens_per_min": "tokens in", "output_tokens_per_min": "tokens out"}
PERIODS = {"agent": "today", "tenant": "in 30 days", "day": "today"}


def table(found: dict[str, Any]) -> Group:
    """One line a model, and one a budget."""
    models = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("endpoint", "model", "state"):
        models.add_column(heading, no_wrap=True)
    models.add_column("chains")
    for heading in ("failed", "latency", "in flight", "a minute", "asked again", "today"):
        models.add_column(heading, justify="right")
    for one in found["models"]:
        models.add_row(
            one["endpoint"], one["model"], Text(one["state"], style=STYLES.get(one["state"], "")),
            _chains(one["chains"]), _failed(one), _latency(one), _in_flight(one), _limits(one["limits"]), _wait(one),
            _spent(one["spent_today"], currency=found["currency"]),
        )  # fmt: skip
    parts: list[Any] = [models]
    for one in found["models"]:
        if one.get("reason"):
            parts.append(Text(f"{one['endpoint']} {one['model']} is {one['state']}: {one['reason']}", style="dim"))
    if not all(one.get("shared", True) for one in found["models"]):
        parts.append(Text("Redis is away: this is what one process knows.", style="yellow"))
    return Group(*parts, *_budgets(found))


def _chains(places: dict[str, int]) -> str:
    return ", ".join(f"{chain} {place}" for chain, place in places.items()) or NOTHING


def _failed(one: dict[str, Any]) -> str:
    """Of the latest calls, as the breaker counts them."""
    calls = one["total_calls"]
    return f"{round(one['failure_rate'] * calls)} of {calls}" if calls else NOTHING


def _latency(one: dict[str, Any]) -> str:
    return f"{one['avg_latency_s']:.2f} s" if one["total_calls"] else NOTHING


def _in_flight(one: dict[str, Any]) -> str:
    limit = one.get("concurrency")
    return str(one["in_flight"]) if limit is None else f"{one['in_flight']} of {limit:g}"


def _limits(limits: dict[str, int]) -> str:
    return ", ".join(f"{_short(limits[name])} {unit}" for name, unit in UNITS.items() if name in limits) or NOTHING


def _wait(one: dict[str, Any]) -> str:
    waits = [wait for wait in (one.get("retry_after_s"), one.get("not_before_s")) if wait]
    if waits:
        return f"in {max(waits):.0f} s"
    return {"closed": NOTHING, "forced-open": "by hand", "disabled": "by hand"}.get(one["state"], "now")


def _spent(page: dict[str, Any], *, currency: str) -> str:
    if not page["calls"]:
        return NOTHING
    calls = "1 call" if page["calls"] == 1 else f"{page['calls']} calls"
    told = f"{calls}, {_short(page['input_tokens'] + page['output_tokens'])} tokens"
    return f"{told}, {_money(page['money'], currency)}" if page["money"] else told


def _budgets(found: dict[str, Any]) -> list[Text]:
    if "budgets" not in found:
        return []
    if not found["budgets"]:
        return [Text(f"Tenant {found['tenant']} has no budget.")]
    lines = [Text(f"Left to tenant {found['tenant']}:", style="bold")]
    for left in found["budgets"]:
        who = f"agent {left['name']}" if left["level"] == "agent" else "all agents"
        lines.append(Text(f"  {who}, {PERIODS.get(left['level'], left['level'])}: {_left(left, found['currency'])}"))
    return lines


def _left(left: dict[str, Any], currency: str) -> str:
    parts = []
    if left["tokens_left"] is not None:
        parts.append(f"{_short(left['tokens_left'])} tokens")
    if left["money_left"] is not None:
        parts.append(_money(left["money_left"], currency))
    return " and ".join(parts) or NOTHING


def _short(number: float) -> str:
    """A few figures are enough to look at; all of them are in the JSON."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if abs(number) >= 10 * unit:
            return f"{number / unit:.0f}{letter}"
    return f"{number:.0f}"


def _money(money: float, currency: str) -> str:
    return f"{money:.2f} {currency}" if money >= 0.01 or money <= 0 else f"< 0.01 {currency}"
