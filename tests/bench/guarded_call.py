"""`guarded_call.p50`: what a guarded call takes over the openai SDK alone, against the same server.

Everything is on: deadline, ladder, retry, admission with limits and budgets, a breaker, all in Redis (two round trips),
timeouts, strict reading, metrics. The peer is one `chat.completions.create` of the SDK with `max_retries=0`. In turns,
call by call, each order as often as the other; one call at a time.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from openai import AsyncOpenAI

from shared.llm.call_context import CallContext
from shared.llm.guarded import GuardedChat
from shared.llm.messages import ChatRequest, Message
from tests.bench import providers
from tests.bench.figures import Figure, percentile
from tests.bench.site import Site, fresh_tenant, say

PAIRS = 1500
WARM_UP = 100
GOAL_MS = 0.4
FILE = """\
version: 1
endpoints: {one: {base_url: "URL"}}
models:
  model:
    endpoint: one
    context_tokens: 100000
    price: {input_per_million: 1, output_per_million: 1}
    limits: {requests_per_min: 100000000, input_tokens_per_min: 100000000, concurrency: 10000}
chains: {default: [model]}
budgets: {run: {money: 1000000}, day: {money: 1000000, tokens: 1000000000}}
"""


def measure(site: Site) -> list[Figure]:
    """Take turns."""
    with providers.provider() as served:
        ours, theirs = site.run(sample(served.base_url))
    say(f"  guarded p50 {percentile(ours, 50):.2f} ms, SDK p50 {percentile(theirs, 50):.2f} ms")
    over_ms = percentile([mine - sdk for mine, sdk in zip(ours, theirs, strict=True)], 50)
    return [
        Figure(
            name="guarded_call.p50", what="guarded LLM call, over the SDK alone", value=over_ms, unit="ms",
            goal=GOAL_MS, better="lower",
        )
    ]  # fmt: skip


async def sample(base_url: str) -> tuple[list[float], list[float]]:
    """Milliseconds of guarded calls and of the SDK's, pair by pair."""
    ours: list[float] = []
    theirs: list[float] = []
    sdk = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    context = CallContext(
        tenant=fresh_tenant("guarded"), run="bench", deadline_at=datetime.now(UTC) + timedelta(hours=1)
    )
    async with providers.plane(FILE.replace("URL", base_url)) as plane:
        chat = GuardedChat(plane, context)
        question = ChatRequest((Message("user", "Hello?"),), max_tokens=100)

        async def guarded() -> None:
            await chat.chat(question)

        async def alone() -> None:
            await sdk.chat.completions.create(
                model="model", messages=[{"role": "user", "content": "Hello?"}], max_tokens=100
            )

        for number in range(WARM_UP + PAIRS):
            order = ((guarded, ours), (alone, theirs)) if number % 2 else ((alone, theirs), (guarded, ours))
            for call, samples in order:
                samples.append(await milliseconds(call))
    await sdk.close()
    return ours[WARM_UP:], theirs[WARM_UP:]


async def milliseconds(call: Callable[[], Awaitable[None]]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1000
