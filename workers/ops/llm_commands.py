"""`fleet llm …`: which models are up, what they cost today, and an operator's hand on their breakers."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.live import Live

from shared.errors import BadInput, Misconfigured
from shared.telemetry.logs import setup_logs
from workers.ops.commands import AsJson
from workers.ops.door import Door, Where, addresses
from workers.ops.llm_screen import table
from workers.ops.screen import TABLE_WIDTH, print_json

if TYPE_CHECKING:  # importing them takes a while, which other commands need not pay
    from redis.asyncio import Redis

    from shared.llm.config import LLMConfig
    from shared.resilience.gate import Gate

T = TypeVar("T")

EVERY_S = 1.0
llm = typer.Typer(name="llm", help="Look at the language models and switch them.", no_args_is_help=True)
Target = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="An endpoint (all its models), ENDPOINT:MODEL, or a model's name.")
]
Reason = Annotated[str, typer.Option("--reason", help="For the log and for whoever asks why.")]


@dataclass(frozen=True, slots=True)
class Desk:
    """What an operator's command works with."""

    redis: "Redis"
    config: "LLMConfig"
    gate: "Gate"


@llm.command()
def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking, once a second, until Ctrl-C.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Also show what is left of this tenant's budgets.")] = None,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Show every model: breaker, failures, latency, limits, when it is asked again, spending today."""

    async def look(desk: Desk) -> None:
        if not watch:
            found = await facts(desk, tenant=tenant)
            print_json(found) if as_json else _console().print(table(found))
            return
        await _keep_looking(desk, tenant=tenant, as_json=as_json)

    _at_desk(context, folder, look)


@llm.command("open")
def open_(
    context: typer.Context, target: Target, reason: Reason = "opened by an operator", folder: Where = None
) -> None:
    """Open its breaker: no call goes there until `fleet llm close`."""
    _switch(context, target, folder, lambda gate, key: gate.force_open(key, reason=reason), "open: no calls go there")


@llm.command()
def close(context: typer.Context, target: Target, folder: Where = None) -> None:
    """Let calls through again, and forget what the breaker had counted."""
    _switch(context, target, folder, lambda gate, key: gate.close(key), "closed: calls go there again")


@llm.command()
def disable(
    context: typer.Context, target: Target, reason: Reason = "disabled by an operator",
    for_s: Annotated[float | None, typer.Option("--for", min=1, help="Seconds until probes ask it again.")] = None,
    folder: Where = None,
) -> None:  # fmt: skip
    """Take it out of service, for a time or until `fleet llm close`."""
    until = "until `fleet llm close`" if for_s is None else f"for {for_s:g} s"
    _switch(
        context, target, folder, lambda gate, key: gate.disable(key, reason=reason, for_s=for_s), f"disabled {until}"
    )


@llm.command()
def erase(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="Whose kept answers.")],
    folder: Where = None,
) -> None:
    """Forget every answer that is kept of a tenant."""

    async def forget(desk: Desk) -> None:
        from shared.llm.answer_cache import RedisAnswers  # imported here: see above

        print(f"Erased {await RedisAnswers(desk.redis, timeout_s=30.0).erase(tenant)} answers of {tenant}.")

    _at_desk(context, folder, forget)


@llm.command()
def schema() -> None:
    """Print the JSON Schema of the file in FLEET_LLM_CONFIG; deploy/llm.v1.schema.json is a copy."""
    print(schema_text())


def schema_text() -> str:
    """The schema, spelled the same on every machine."""
    from shared.llm.config import config_schema  # imported here: see above

    return json.dumps(config_schema(), indent=2, sort_keys=True, ensure_ascii=False)


async def facts(desk: Desk, *, tenant: str | None = None) -> dict[str, Any]:
    """All that `fleet llm status` knows, as plain data."""
    from shared.llm.day_book import Spending, spent
    from shared.llm.rules import purses

    now = datetime.now(UTC)
    book = await spent(desk.redis, now.date())
    names = {desk.config.key(name): name for name in desk.config.models}
    models = []
    for key, endpoint in desk.config.every_key().items():
        name, page, stats = names.get(key), book.get(key, Spending()), await desk.gate.stats(key)
        if name is None and not page.calls and not stats.total_calls and stats.state == "closed":
            continue  # nobody has named a model that is not listed
        places = {one: chain.index(name) + 1 for one, chain in desk.config.chains.items() if name in chain}
        limits = {} if name is None else desk.config.models[name].limits.model_dump(exclude_none=True)
        models.append(
            {
                "model": name or "any other", "endpoint": endpoint, "chains": places, "limits": limits,
                **stats.as_dict(),
                "spent_today": {"calls": page.calls, "input_tokens": page.input_tokens,
                                "output_tokens": page.output_tokens, "money": round(page.money, 6)},
            }
        )  # fmt: skip
    found: dict[str, Any] = {"at": now.isoformat(), "currency": desk.config.currency, "models": models}
    if tenant is not None:
        agents = dict.fromkeys(("chat", *desk.config.agents))
        budgets = {one: None for agent in agents for one in purses(desk.config, tenant=tenant, agent=agent, run=None)}
        left = await desk.gate.left(list(budgets), tenant=tenant)
        found["tenant"] = tenant
        found["budgets"] = [
            {"level": one.level, "name": one.name, "tokens_left": one.tokens, "money_left": one.money} for one in left
        ]
    return found


def keys_of(config: "LLMConfig", target: str) -> list[str]:
    """The keys that an operator means. Raises: BadInput, naming what there is."""
    keys = {name: config.key(name) for name in config.models}
    if target in config.endpoints:
        return sorted(key for key, endpoint in config.every_key().items() if endpoint == target)
    if target in keys:
        return [keys[target]]
    if target in config.every_key():
        return [target]
    raise BadInput(
        f"no endpoint or model is named {target}; there are: {', '.join([*config.endpoints, *config.models])}",
        target=target,
    )


async def _keep_looking(desk: Desk, *, tenant: str | None, as_json: bool) -> None:
    if as_json:
        while True:
            print(json.dumps(await facts(desk, tenant=tenant)), flush=True)
            await asyncio.sleep(EVERY_S)
    with Live(table(await facts(desk, tenant=tenant)), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(EVERY_S)
            live.update(table(await facts(desk, tenant=tenant)), refresh=True)


def _console() -> Console:
    console = Console(soft_wrap=True, highlight=False)
    return console if console.is_terminal else Console(width=TABLE_WIDTH, soft_wrap=True, highlight=False)


def _switch(
    context: typer.Context, target: str, folder: Any, act: Callable[["Gate", str], Awaitable[Any]], words: str
) -> None:
    async def switch(desk: Desk) -> None:
        for key in keys_of(desk.config, target):
            await act(desk.gate, key)
            print(f"{key} is {words}.")

    _at_desk(context, folder, switch)


def _at_desk(context: typer.Context, folder: Any, work: Callable[[Desk], Awaitable[T]]) -> None:
    door: Door = context.obj
    door.check()
    setup_logs(style="console", level="CRITICAL")  # one sentence says it, not log lines before it
    found = {**door.environment, **addresses(folder, environment=door.environment)}

    async def run() -> None:
        async with _desk(found.get("FLEET_MEMORY_REDIS_URL", "redis://127.0.0.1:6379/1")) as desk:
            await work(desk)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass  # it is how watching ends
    except BrokenPipeError:  # or whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@asynccontextmanager
async def _desk(redis_url: str) -> AsyncIterator[Desk]:
    """Raises: Misconfigured when Redis does not answer or no worker has announced itself there."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    from shared.llm.roster import announced
    from shared.llm.rules import key_rules
    from shared.resilience.gate import Gate
    from shared.resilience.redis_store import RedisStore

    redis = Redis.from_url(redis_url, socket_timeout=2.0, socket_connect_timeout=2.0)
    store = RedisStore(redis)
    try:
        config = await announced(redis)
        if config is None:
            raise Misconfigured("No worker has announced its language models here yet: start one, then look again.")
        yield Desk(redis, config, Gate(store, key_rules(config)))
    except RedisError as error:
        raise Misconfigured(
            f"Redis does not answer ({type(error).__name__}): is FLEET_MEMORY_REDIS_URL right?"
        ) from None
    finally:
        await store.aclose()
        await redis.aclose()
