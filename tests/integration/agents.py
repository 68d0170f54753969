"""Agents that the integration tests run: small, and each shows one thing."""

import asyncio
import time
from pathlib import Path
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from pydantic import BaseModel, ConfigDict

from workers.agents.agent import agent, tool
from workers.agents.run import Run


class Order(BaseModel):
    """A typed input."""

    model_config = ConfigDict(extra="forbid")

    item: str
    count: int = 1


@agent("test.echo")
async def echo(run: Run, text: str, times: int = 1) -> dict[str, Any]:
    """Give back what came in."""
    said = await run.step("say", lambda what, n: [what] * n, text, times)
    return {"said": said, "attempt": run.attempt, "tenant": run.tenant, "session": run.session}


@agent("test.order")
async def order(run: Run, order: Order) -> str:
    """Take one model as input."""
    return f"{order.count} x {order.item}"


@agent("test.steps")
async def steps(run: Run, count: int, step_s: float, diary: str) -> list[int]:
    """Run `count` slow steps; each writes a line into the diary when it has happened."""
    return [await run.step("slow", slow, number, step_s, diary) for number in range(count)]


async def slow(number: int, step_s: float, diary: str) -> int:
    """Wait, then say so where it cannot be taken back."""
    await asyncio.sleep(step_s)
    note(diary, number)
    return number


def note(diary: str, number: int) -> None:
    """Add a line: one short append is atomic, whoever else writes."""
    with Path(diary).open("a") as page:
        page.write(f"{number}\n")


@agent("test.sleep")
async def sleep(run: Run, seconds: float) -> float:
    """Wait without a step."""
    await asyncio.sleep(seconds)
    return time.time()


@agent("test.fail")
async def fail(run: Run, message: str) -> None:
    """End with an error."""
    raise RuntimeError(message)


@agent("test.soft", soft_limit_s=0.3, hard_limit_s=10)
async def soft(run: Run) -> str:
    """Notice the soft limit and end well."""
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "slept through"


@agent("test.hard", soft_limit_s=0.2, hard_limit_s=0.5)
async def hard(run: Run) -> str:
    """Ignore the soft limit."""
    for _ in range(2):
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            continue
    return "slept through"


@agent("test.blocking")
async def blocking(run: Run) -> int:
    """Leave blocking work to a thread."""
    return int(await run.step("block", block, 5))


def block(number: int) -> int:
    """Block the thread it runs in."""
    time.sleep(0.2)
    return number * 2


@agent("test.unstorable")
async def unstorable(run: Run) -> Any:
    """Return what is not JSON."""
    return object()


@agent("test.nul")
async def nul(run: Run) -> str:
    """Return a character that PostgreSQL's text cannot hold."""
    return "a\x00b"


@tool("test.double")
def double(number: int) -> int:
    """Double a number."""
    return number * 2


@agent("test.tool")
async def uses_tool(run: Run, number: int) -> int:
    """Call a tool."""
    return int(await run.tool("test.double", number=number))


@agent("test.fail.nul")
async def fail_nul(run: Run) -> None:
    """End with an error whose text PostgreSQL cannot hold."""
    raise RuntimeError("a\x00b")
