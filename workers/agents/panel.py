"""`celery control …`: commands whose stock meaning would not reach the ledger."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from celery.utils.functional import maybe_list
from celery.worker import control
from celery.worker import state as celery_state

from shared.errors import BadMessage
from workers.agents.consumer import task_of

log = structlog.get_logger()


def take_over_commands() -> None:
    """Answer them here instead of Celery's own."""
    control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")(revoke)
    control.control_command(
        variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]"
    )(terminate)  # fmt: skip


def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> Any:
    """Cancel tasks by id that do not run yet, in the ledger; with terminate=True end running ones too.

    Every worker hears it. Stock Celery would only drop the message where it comes up, and the ledger, which knows
    nothing of that, send another one.
    """
    words = [str(one) for one in maybe_list(task_id) or []]
    ids = [one for one in map(_as_id, words) if one is not None]
    log.info("worker.asked_to_revoke", tasks=words, terminate=bool(terminate))
    if ids:
        asyncio.run_coroutine_threadsafe(_in_ledger(state, ids, terminate=bool(terminate)), state.consumer.pool.loop)
    if terminate or len(ids) < len(words):
        return control.revoke(state, words, terminate=terminate, signal=signal, **kwargs)
    return control.ok(f"tasks {', '.join(words)} are cancelled unless they run; use terminate=True for those that do")


def terminate(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    """Cancel tasks by id, also those that run."""
    return revoke(state, task_id, terminate=True, signal=signal, **kwargs)


async def _in_ledger(state: Any, ids: Sequence[UUID], *, terminate: bool) -> None:
    active = state.app.fleet_host.active
    for task_id in ids:
        if terminate and task_id in active:  # Celery itself knows of no run that came straight from the ledger
            active[task_id].cancel("revoked")
    unknown = await state.app.fleet_host.revoke(ids)
    if unknown:
        state.consumer.pool.mailbox.put(_flag, state, [str(one) for one in unknown])


def _flag(state: Any, unknown: Sequence[str]) -> None:
    """Messages that nobody has claimed: those to come are known by their ids, those that wait here are at hand."""
    celery_state.revoked.update(unknown)
    for request in list(celery_state.reserved_requests):
        if request.id in unknown and (task := _task_of(state, request.message)) is not None:
            asyncio.run_coroutine_threadsafe(state.app.fleet_host.hold_revoked(task), state.consumer.pool.loop)


def _task_of(state: Any, message: Any) -> Any:
    try:
        return task_of(message, state.app.tasks)
    except BadMessage:
        return None


def _as_id(word: str) -> UUID | None:
    try:
        return UUID(word)
    except ValueError:
        return None
