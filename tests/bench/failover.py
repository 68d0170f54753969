"""`failover.first_backup_answer`: from the death of the primary to the first answer of the backup, under 200 calls.

The worst death is the silent one: the primary's process is frozen, connections stay open, nothing is refused. Then
nothing can be known before a call's own timeout, so that is the goal, plus the time of one answer.
"""

import asyncio
import signal
import time

from shared.llm.call_context import CallContext
from shared.llm.guarded import GuardedChat
from shared.llm.messages import ChatRequest, Message
from tests.bench import providers
from tests.bench.figures import Figure
from tests.bench.site import BenchFailed, Site, say

CALLERS = 200
ANSWER_S = 1.0
TIMEOUT_S = 3.0
BEFORE_S = 5.0
GIVE_UP_S = 30.0
FILE = f"""\
version: 1
endpoints:
  first: {{base_url: "FIRST", timeouts: {{total_s: {TIMEOUT_S}}}}}
  second: {{base_url: "SECOND", timeouts: {{total_s: {TIMEOUT_S}}}}}
models: {{big: {{endpoint: first}}, small: {{endpoint: second}}}}
chains: {{default: [big, small]}}
"""


def measure(site: Site) -> list[Figure]:
    """Freeze the primary."""
    reset_s = site.run(failover(signal.SIGKILL))
    say(f"  killed: first answer of the backup after {reset_s:.2f} s")
    frozen_s = site.run(failover(signal.SIGSTOP))
    return [
        Figure(
            name="failover.first_backup_answer", what="primary frozen under 200 calls → first answer of the backup",
            value=frozen_s, unit="s", goal=TIMEOUT_S + ANSWER_S, better="lower",
            goal_words=f"≤ {TIMEOUT_S:g} s call timeout + {ANSWER_S:g} s answer",
        )
    ]  # fmt: skip


async def failover(death: signal.Signals) -> float:
    """Seconds from a death to the first L1 answer; no call may fail. Raises: BenchFailed."""
    with providers.provider(delay_s=ANSWER_S) as first, providers.provider(delay_s=ANSWER_S) as second:
        text = FILE.replace("FIRST", first.base_url).replace("SECOND", second.base_url)
        async with providers.plane(text) as plane:
            saved: list[float] = []
            stop = asyncio.Event()

            async def caller(number: int) -> None:
                chat = GuardedChat(plane, CallContext(run=f"run-{number}"))
                while not stop.is_set():
                    reply = await chat.chat(ChatRequest((Message("user", f"Hello from {number}?"),)))
                    if reply.level not in ("L0", "L1"):
                        raise BenchFailed(f"a call was answered at {reply.level}: {reply.reasons}")
                    if reply.level == "L1":
                        saved.append(time.monotonic())

            async with asyncio.TaskGroup() as callers:
                for number in range(CALLERS):
                    callers.create_task(caller(number))
                await asyncio.sleep(BEFORE_S)
                early = len(saved)
                died = time.monotonic()
                first.signal(death)
                while len(saved) == early and time.monotonic() - died < GIVE_UP_S:
                    await asyncio.sleep(0.005)
                stop.set()
            if early or not saved:
                raise BenchFailed("the primary did not answer all calls before, or the backup none after")
            return min(saved) - died
