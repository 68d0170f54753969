"""A task's input under seal, in the shape that a plain one has: on the wire and in `tasks.input` alike.

    plain   {"args": [1], "kwargs": {"text": "…"}}
    sealed  {"args": [],  "kwargs": {"$sealed": {…}}}        the whole plain object is inside

So a sealed message is an ordinary message, and what stores, counts or republishes tasks needs no key.

A schedule's input is sealed for the schedule. The keeper, which has no key, hands it on to each tick as it is, with a
word beside it that says whose tick this is; it opens for the tasks that are ticks of that schedule and for no others.

    tick    {"args": [{"$schedule": "daily", "at": "2027-01-01T08:00:00+00:00"}], "kwargs": {"$sealed": {…}}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from shared.contracts import TaskMessage, is_tick
from shared.errors import BadInput, SealBroken, SealKeyUnknown
from shared.ledger.vault import INPUT, NO_TASK, SEALED, Vault, is_sealed, schedule_role

SCHEDULE: Final = "$schedule"


def seal_message(vault: Vault, message: TaskMessage) -> TaskMessage:
    """What a producer publishes and stores: the message with its input sealed, or itself where there are no keys.

    Raises: BadInput when the input is not JSON, or has the sealed form itself and there are no keys.
    """
    if vault.active_key_id is None:
        if is_sealed(message.kwargs):
            raise BadInput(f"the input of agent {message.agent!r} must not be named {SEALED!r}: the ledger uses it")
        return message
    inputs = {"args": list(message.args), "kwargs": dict(message.kwargs)}
    return replace(message, args=(), kwargs=vault.seal(inputs, task_id=message.id, role=INPUT))


def seal_received(vault: Vault, message: TaskMessage) -> TaskMessage:
    """What a worker stores of a message: sealed if it came plain (a stock Celery client), else as it came."""
    return message if is_sealed(message.kwargs) else seal_message(vault, message)


def open_message(vault: Vault, message: TaskMessage) -> TaskMessage:
    """What an agent is given: the message with its input opened; itself when it came plain.

    Raises: SealKeyUnknown and SealBroken as `Vault.open`.
    """
    args, kwargs = open_input(vault, {"args": list(message.args), "kwargs": message.kwargs}, task_id=message.id)
    return replace(message, args=tuple(args), kwargs=kwargs)


def open_input(vault: Vault, stored: Mapping[str, Any], *, task_id: UUID) -> tuple[list[Any], Mapping[str, Any]]:
    """The positional and named inputs of `tasks.input`.

    Raises: SealKeyUnknown and SealBroken as `Vault.open`.
    """
    if not is_sealed(stored["kwargs"]):
        return list(stored["args"]), stored["kwargs"]
    schedule = _schedule_of(stored["args"], task_id) if stored["args"] else None
    whose, role = (task_id, INPUT) if schedule is None else (NO_TASK, schedule_role(schedule))
    inputs = vault.open(stored["kwargs"], task_id=whose, role=role)
    return inputs["args"], inputs["kwargs"]


def seal_scheduled(vault: Vault, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What `schedules.input` holds: sealed for this schedule, or plain where there are no keys.

    Raises: BadInput when it is not JSON, or has the sealed form itself and there are no keys.
    """
    plain = {"args": [], "kwargs": dict(kwargs)}
    inside = plain["kwargs"] if vault.active_key_id is None else plain
    return {"args": [], "kwargs": vault.seal(inside, task_id=NO_TASK, role=schedule_role(name))}


def open_scheduled(vault: Vault, name: str, stored: dict[str, Any]) -> dict[str, Any]:
    """A schedule's input for people; as it is stored where the key is not here, or it was altered."""
    try:
        inputs: dict[str, Any] = vault.open(stored["kwargs"], task_id=NO_TASK, role=schedule_role(name))
    except (SealKeyUnknown, SealBroken):
        return stored
    return inputs if is_sealed(stored["kwargs"]) else stored


def tick_input(name: str, at: datetime, stored: dict[str, Any]) -> dict[str, Any]:
    """The input of a schedule's tick; needs no key."""
    if not is_sealed(stored["kwargs"]):
        return stored
    return {"args": [{SCHEDULE: name, "at": at.isoformat()}], "kwargs": stored["kwargs"]}


def _schedule_of(args: Sequence[Any], task_id: UUID) -> str:
    """The schedule that this task is a tick of, by the word beside its sealed input. Raises: SealBroken."""
    try:
        (word,) = args
        name, at = str(word[SCHEDULE]), datetime.fromisoformat(word["at"])
        if len(word) == 2 and is_tick(task_id, name, at):
            return name
    except (ValueError, TypeError, KeyError):
        pass
    raise SealBroken(f"the sealed input of task {task_id} has plain inputs beside it", task_id=str(task_id))
