"""A task's input under seal, in the shape that a plain one has: on the wire and in `tasks.input` alike.

    plain   {"args": [1], "kwargs": {"text": "…"}}
    sealed  {"args": [],  "kwargs": {"$sealed": {…}}}        the whole plain object is inside

So a sealed message is an ordinary message, and what stores, counts or republishes tasks needs no key.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from shared.contracts import TaskMessage
from shared.errors import BadInput, SealBroken
from shared.ledger.vault import INPUT, SEALED, Vault, is_sealed


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

    Raises: SealKeyUnknown, SealBroken, Misconfigured as `Vault.open`.
    """
    args, kwargs = open_input(vault, {"args": list(message.args), "kwargs": message.kwargs}, task_id=message.id)
    return replace(message, args=tuple(args), kwargs=kwargs)


def open_input(vault: Vault, stored: Mapping[str, Any], *, task_id: UUID) -> tuple[list[Any], Mapping[str, Any]]:
    """The positional and named inputs of `tasks.input`.

    Raises: SealKeyUnknown, SealBroken, Misconfigured as `Vault.open`.
    """
    if not is_sealed(stored["kwargs"]):
        return list(stored["args"]), stored["kwargs"]
    if stored["args"]:
        raise SealBroken(f"the sealed input of task {task_id} has plain inputs beside it", task_id=str(task_id))
    inputs = vault.open(stored["kwargs"], task_id=task_id, role=INPUT)
    return inputs["args"], inputs["kwargs"]
