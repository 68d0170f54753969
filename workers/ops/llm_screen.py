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


def table(found: dict[str, Any]) -> Group:
    """One line a model, and one a budget."""
    models = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("endpoint", "model", "state"):
        models.add_column(heading, no_wrap=True)
    for heading in ("failures", "calls", "latency", "in flight", "asked again", "today"):
        models.add_column(heading, no_wrap=True, justify="right")
    models.add_column("why")
    for one in found["models"]:
        models.add_row(
            one["endpoint"], one["model"], Text(one["state"], style=STYLES.get(one["state"], "")),
            f"{one['failure_rate']:.0%}", str(one["total_calls"]), f"{one['avg_latency_s']:.2f} s", _in_flight(one),
            _wait(one), _spent(one["spent_today"], currency=found["currency"]), one.get("reason") or "",
        )  # fmt: skip
    parts: list[Any] = [models]
    if not all(one.get("shared", True) for one in found["models"]):
        parts.append(Text("Redis is away: this is what one process knows.", style="yellow"))
    for left in found.get("budgets", ()):
        parts.append(Text(f"{left['level']} {left['name']}: {_left(left, currency=found['currency'])} left"))
    return Group(*parts)


def _in_flight(one: dict[str, Any]) -> str:
    limit = one.get("concurrency")
    return str(one["in_flight"]) if limit is None else f"{one['in_flight']}/{limit:g}"


def _wait(one: dict[str, Any]) -> str:
    waits = [wait for wait in (one.get("retry_after_s"), one.get("not_before_s")) if wait]
    return f"in {max(waits):.0f} s" if waits else NOTHING


def _spent(page: dict[str, Any], *, currency: str) -> str:
    tokens = page["input_tokens"] + page["output_tokens"]
    return f"{page['calls']} calls, {tokens} tokens" + (f", {page['money']:.2f} {currency}" if page["money"] else "")


def _left(left: dict[str, Any], *, currency: str) -> str:
    parts = []
    if left["tokens_left"] is not None:
        parts.append(f"{left['tokens_left']:g} tokens")
    if left["money_left"] is not None:
        parts.append(f"{left['money_left']:.2f} {currency}")
    return " and ".join(parts) or NOTHING
