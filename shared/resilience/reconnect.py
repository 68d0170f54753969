"""Wait for a server that is away, patiently and audibly."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from shared.errors import ShardMoved, Transient

log = structlog.get_logger()

T = TypeVar("T")


async def until_available(call: Callable[[], Awaitable[T]], *, what: str, cap_s: float = 5.0) -> T:
    """Call until it does not fail as Transient, waiting up to `cap_s` seconds (full jitter) between tries.

    ShardMoved is raised at once: no waiting here brings a bucket back.

    Args:
        what: Who is awaited, for the log.
    """

    def tell(state: RetryCallState) -> None:
        wait_s = round(state.next_action.sleep, 2) if state.next_action else 0.0
        error = state.outcome.exception() if state.outcome else None
        log.warning("resilience.waiting", what=what, attempt=state.attempt_number, wait_s=wait_s, cause=str(error))

    waits = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, Transient) and not isinstance(error, ShardMoved)),
        wait=wait_random_exponential(multiplier=0.2, max=cap_s),
        before_sleep=tell,
        reraise=True,
    )

    async def attempt() -> T:
        return await call()

    return await waits(attempt)
