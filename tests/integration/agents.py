"""Agents that the integration tests run: small, and each shows one thing."""

import asyncio
import time
from pathlib import Path
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from pydantic import BaseModel, ConfigDict

from shared.errors import ChildFailed, LLMRateLimited
from shared.ledger.retry import Retry
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


@agent("test.until")
async def until(run: Run, file: str) -> bool:
    """Be in one call until a file exists."""
    return bool(await run.step("until", exists, file))


async def exists(file: str) -> bool:
    """Wait for a file."""
    while not await asyncio.to_thread(Path(file).exists):
        await asyncio.sleep(0.05)
    return True


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


@agent("test.unstorable.step")
async def unstorable_step(run: Run) -> Any:
    """Have a step whose result is not JSON."""
    return await run.step("odd", lambda: {1, 2})


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


@agent("test.nap")
async def nap(run: Run, seconds: float, diary: str) -> list[int]:
    """Sleep between two steps."""
    first = await run.step("before", slow, 1, 0.0, diary)
    await run.sleep(seconds)
    return [first, await run.step("after", slow, 2, 0.0, diary)]


@agent("test.approval")
async def approval(run: Run, diary: str, timeout_s: float | None = None, times: int = 1) -> list[Any]:
    """Ask people, `times` times."""
    await run.step("prepare", slow, 1, 0.0, diary)
    answers = [await run.wait_for("approval", timeout_s=timeout_s) for _ in range(times)]
    await run.step("act", slow, 2, 0.0, diary)
    return answers


@agent("test.busy")
async def busy(run: Run, diary: str, count: int, step_s: float) -> list[int]:
    """Work in one branch while another waits for a signal."""
    waiting, worked = await asyncio.gather(run.wait_for("go"), steps(run, count, step_s, diary))
    return [int(waiting), *worked]


@agent("test.flaky")
async def flaky(run: Run, diary: str, failures: int, wait_s: float) -> int:
    """Fail a few times and be tried again."""
    return int(
        await run.step("call", fails_first, diary, failures, wait_s, retry=Retry(attempts=failures + 1, base_s=0.01))
    )


def fails_first(diary: str, failures: int, wait_s: float) -> int:
    """Count the calls where it cannot be taken back; fail the first few."""
    note(diary, 1)
    calls = len(Path(diary).read_text().split())
    if calls <= failures:
        raise LLMRateLimited("slow down", retry_after_s=wait_s)
    return calls


@agent("test.family")
async def family(
    run: Run, count: int, diary: str, step_s: float = 0.0, fail: int = -1, steps: int = 2, until: str = ""
) -> list[Any]:
    """Leave the work to children and gather what they bring; the first one waits for a file, if it is named."""
    share = {"count": steps, "step_s": step_s, "diary": diary}
    started = [
        await run.spawn(
            "test.kid", {"number": n, **share, "fail": n == fail, "until": until if n == 0 else ""}, max_attempts=20
        )
        for n in range(count)
    ]
    ended = await run.gather(started, return_exceptions=fail == -2)
    await run.step("done", note, diary, 1000)
    return [str(one) if isinstance(one, ChildFailed) else one for one in ended]


@agent("test.kid")
async def kid(run: Run, number: int, count: int, step_s: float, diary: str, fail: bool = False, until: str = "") -> int:
    """Do a child's share, in steps."""
    for _ in range(count):
        await run.step("share", slow, number, step_s, diary)
    if until:
        await run.step("until", exists, until)
    if fail:
        raise RuntimeError(f"kid {number} has had enough")
    return number * 10


@agent("test.dynasty")
async def dynasty(run: Run, depth: int, diary: str, seconds: float) -> int:
    """A child for every generation, and the last one takes its time."""
    if depth == 0:
        await run.step("last", slow, 0, seconds, diary)
        return 0
    child = await run.spawn("test.dynasty", {"depth": depth - 1, "diary": diary, "seconds": seconds})
    (below,) = await run.gather([child])
    return int(below) + 1


@agent("test.ask")
async def ask(run: Run, text: str) -> str:
    """Ask the model."""
    return (await run.chat(text, max_tokens=5)).text


@agent("test.stubborn")
async def stubborn(run: Run, diary: str) -> str:
    """Do not take a cancellation for an answer."""
    for number in range(100):
        try:
            await run.step("slow", slow, number, 0.3, diary)
        except asyncio.CancelledError:
            continue
    return "finished all the same"


@agent("test.large")
async def large(run: Run, size: int, diary: str, crash_s: float = 0.0, until: str = "") -> int:
    """Keep a large result, and take the time to be killed after it: some seconds, or until a file exists."""
    text = await run.step("large", made_large, size, diary)
    await run.step("slow", slow_until, until, crash_s, diary)
    return len(text)


async def slow_until(until: str, step_s: float, diary: str) -> int:
    """Wait for both, then say so."""
    if until:
        await exists(until)
    return await slow(2, step_s, diary)


def made_large(size: int, diary: str) -> str:
    """Many letters, told once."""
    note(diary, 1)
    return "é" * size


async def _changes(run: Run, diary: str, asked: str) -> list[Any]:
    """A step whose request depends on a file that changes while it waits, then a wait, then another step."""
    request = await asyncio.to_thread(Path(asked).read_text)
    first = await run.step("first", noted, diary, request)
    answer = await run.wait_for("go")
    return [first, answer, await run.step("second", noted, diary, "second")]


def noted(diary: str, text: str) -> str:
    """Write down what was asked."""
    with Path(diary).open("a") as page:
        page.write(f"{text}\n")
    return text


@agent("test.change.pause")
async def change_pause(run: Run, diary: str, asked: str) -> list[Any]:
    """Stop at a changed step."""
    return await _changes(run, diary, asked)


@agent("test.change.reuse", on_change="reuse")
async def change_reuse(run: Run, diary: str, asked: str) -> list[Any]:
    """Take the old result of a changed step."""
    return await _changes(run, diary, asked)


@agent("test.change.rerun", on_change="rerun")
async def change_rerun(run: Run, diary: str, asked: str) -> list[Any]:
    """Execute a changed step again."""
    return await _changes(run, diary, asked)


@agent("test.bankrupt")
async def bankrupt(run: Run, diary: str) -> None:
    """Start two children and fail."""
    for number in range(2):
        await run.spawn("test.kid", {"number": number, "count": 1, "step_s": 60, "diary": diary})
    await run.step("pause", asyncio.sleep, 1)
    raise RuntimeError("spent it all")
