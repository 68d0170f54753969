"""The watchdog of a worker's event loop: an agent that blocks it is told of, and one that does not is not."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from shared.telemetry import metrics
from tests.fakes.hand_loop import at_once, block
from workers.agents.hosting import WorkerHost
from workers.agents.knobs import WorkerKnobs


def warnings(blocked_s: float) -> list[float]:
    """The lags that were warned of on a loop that somebody blocked for a while."""

    async def main() -> None:
        host = cast(Any, SimpleNamespace(knobs=WorkerKnobs(lag_warn_s=0.5)))
        watch = asyncio.create_task(WorkerHost._watch_lag(host))
        await asyncio.sleep(1.1)
        block(blocked_s)
        for _ in range(5):  # to its next look
            await asyncio.sleep(0)
        assert blocked_s - 0.25 <= metrics.LOOP_LAG_SECONDS._value.get() <= blocked_s
        await asyncio.sleep(5)
        watch.cancel()

    with capture_logs() as logs:
        at_once(main())
    return [one["lag_s"] for one in logs if one["event"] == "worker.loop_lagged"]


def test_an_agent_that_blocks_the_loop_is_told_of_once() -> None:
    (lag_s,) = warnings(blocked_s=3)
    assert 2.75 <= lag_s <= 3


def test_a_busy_moment_is_none_of_its_business() -> None:
    assert warnings(blocked_s=0.4) == []
