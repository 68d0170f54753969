"""One worker's hold on the ledger: claim, journal, finish, suspend, hand back."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from uuid import UUID

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.tokens import CausalToken
from shared.errors import BadInput, Fenced, FleetError
from shared.ledger.ancestry import Ancestor, ancestors
from shared.ledger.awaited import (
    ChildrenAsked,
    SignalAsked,
    cancel_children,
    look_for_children,
    look_for_signals,
)
from shared.ledger.catalogue import Catalogue
from shared.ledger.group_commit import GroupCommit
from shared.ledger.group_read import GroupRead
from shared.ledger.journal import Journal, Look, OnChange
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.records import load_recorded
from shared.ledger.rows import refuse_nul, task_row
from shared.ledger.sealed_input import seal_message, seal_received
from shared.ledger.suspension import Suspension
from shared.ledger.vault import NO_VAULT, OUTPUT, Vault
from shared.resilience.reconnect import until_available


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that is this worker's: every write carries its epoch."""

    task_id: UUID
    epoch: int
    attempt: int
    token: CausalToken | None = field(default=None, compare=False)
    """All that was committed before the claim; None where there is one node."""


class Runs:
    """What one worker may do to tasks. All methods return once the change is on disk.

    Args:
        vault: Seals what is written and opens what is read.
    """

    def __init__(self, database: Database, commit: GroupCommit, knobs: LedgerKnobs, *, vault: Vault = NO_VAULT) -> None:
        self._database = database
        self._commit = commit
        self._knobs = knobs
        self._catalogue = Catalogue(database)
        self._vault = vault
        self._recorded = GroupRead(partial(load_recorded, database, vault=vault))
        self._signals = GroupRead(partial(look_for_signals, database, vault=vault))
        self._children = GroupRead(partial(look_for_children, database, vault=vault))

    async def claim(self, message: TaskMessage) -> Claim | None:
        """Make a task this worker's own, adding it to the ledger when only the message knew it.

        The caller never claims a task that it is running already.

        Returns: None when the task is finished, another worker has it (the message is a duplicate), its time has not
            come, or a limit holds it in the ledger.
        """
        row = task_row(seal_received(self._vault, message))
        refuse_nul(row)
        written = await self._commit.write("claim", ("claim", message.id, None, 0), row)
        if written is None or written.state != "running":
            return None
        return Claim(message.id, written.epoch, written.attempt, written.token)

    async def journal(self, claim: Claim, *, on_change: OnChange = "pause") -> Journal:
        """The run's journal, with the completed steps of its earlier claims.

        Raises: SealKeyUnknown; SealBroken.
        """
        recorded = await self._recorded.ask(claim.task_id) if claim.epoch > 1 else {}
        return Journal(
            self._commit, self._knobs, task_id=claim.task_id, epoch=claim.epoch, recorded=recorded,
            on_change=on_change, vault=self._vault,
        )  # fmt: skip

    async def accept_child(self, message: TaskMessage, *, parent_epoch: int, is_published: bool) -> bool:
        """Add a child task; a second time it changes nothing.

        Args:
            parent_epoch: At which this worker runs the parent.
            is_published: Whether the caller publishes it; else it is held in the ledger for its turn.

        Returns: Whether its tenant's further tasks are to be held.
        Raises: Fenced when another worker owns the parent; BadInput naming the field; UnknownAgent.
        """
        refuse_nul(task_row(message))
        await self._catalogue.check(message.agent, message.kwargs)
        row = task_row(seal_message(self._vault, message))
        row |= {"redispatch_s": self._knobs.redispatch_s, "published": is_published, "parent_epoch": parent_epoch}
        written = await self._commit.write("accept", ("accept", message.id, None, 0), row)
        if written is None:
            raise Fenced(
                f"parent {message.fleet.parent_id} is no longer at epoch {parent_epoch}: another worker owns it"
            )
        return message.fleet.tenant in written.crowded

    async def look_for_signal(self, task_id: UUID, *, name: str, number: int) -> Look:
        """Whether the task has had so many signals of this name; see `awaited`."""
        return await self._signals.ask(SignalAsked(task_id, name, number))

    async def look_for_children(self, task_id: UUID, ids: tuple[UUID, ...]) -> Look:
        """Whether these children of the task have ended; see `awaited`."""
        return await self._children.ask(ChildrenAsked(task_id, ids))

    async def ancestors(self, task_id: UUID) -> tuple[Ancestor, ...]:
        """The tasks above this one, its parent first."""
        return await until_available(lambda: ancestors(self._database, task_id), what="PostgreSQL")

    async def cancel_children(self, task_id: UUID) -> None:
        """Cancel what the task has started and what has not ended."""
        await until_available(lambda: cancel_children(self._database, task_id, knobs=self._knobs), what="PostgreSQL")

    async def succeed(self, claim: Claim, output: Any, report: dict[str, Any]) -> None:
        """End the task with its output.

        Raises: Fenced when another worker owns it; BadInput when the output cannot be stored.
        """
        try:
            sealed = self._vault.seal(output, task_id=claim.task_id, role=OUTPUT)
            await self._finish(claim, "succeeded", output=sealed, report=report)
        except BadInput as error:
            raise BadInput(f"the agent's output is {error.message}") from None

    async def fail(self, claim: Claim, error: FleetError, report: dict[str, Any]) -> None:
        """End the task with its error; one that cannot be stored (U+0000 in its text) ends it all the same.

        Raises: Fenced when another worker owns it.
        """
        await self._end(claim, "failed", error, report)

    async def cancel(self, claim: Claim, error: FleetError, report: dict[str, Any]) -> None:
        """End the task as cancelled.

        Raises: Fenced when another worker owns it.
        """
        await self._end(claim, "cancelled", error, report)

    async def suspend(self, claim: Claim, suspension: Suspension, report: dict[str, Any] | None = None) -> str:
        """Put the task down where it stands; it costs no attempt.

        Returns: Its state from now on: `waiting` or `parked`; `queued` when what it waits for has come meanwhile or it
            was handed back; `cancelled` when that was asked for.
        Raises: Fenced when another worker owns it; BadInput when what it waits for cannot be stored.
        """
        row = {"id": str(claim.task_id), "epoch": claim.epoch, "report": report, **suspension.row()}
        key = ("suspend", claim.task_id, None, 0)
        try:
            written = await self._commit.write("suspend", key, row)
        except BadInput:  # its report or its reason holds U+0000: it is put down all the same
            bare = suspension.error and {"code": suspension.error["code"], "message": "a text that cannot be stored"}
            written = await self._commit.write("suspend", key, {**row, "report": None, "error": bare})
        if written is None:
            raise _fenced(claim)
        return written.state

    async def release(self, claim: Claim) -> str:
        """Hand the task back unfinished: whoever has a free slot goes on with it.

        Returns: `queued`, or `cancelled` when that was asked for.
        Raises: Fenced when another worker owns it.
        """
        return await self.suspend(claim, Suspension(state="queued"))

    async def wake(self, task_id: UUID) -> bool:
        """Tell a parent that one of its children has ended.

        Returns: Whether it can go on now.
        """
        written = await self._commit.write("wake", ("wake", task_id, None, 0), {"id": str(task_id)})
        return written is not None and written.state == "queued"

    async def _end(
        self, claim: Claim, state: Literal["failed", "cancelled"], error: FleetError, report: dict[str, Any]
    ) -> None:
        try:
            await self._finish(claim, state, error=error.as_dict(), report=report)
        except BadInput as cause:
            bare = FleetError(f"the task {state} with {error.code}, whose text or report is {cause.message}")
            await self._finish(claim, state, error={**bare.as_dict(), "code": error.code}, report={})

    async def _finish(self, claim: Claim, state: Literal["succeeded", "failed", "cancelled"], **columns: Any) -> None:
        row = {"id": str(claim.task_id), "epoch": claim.epoch, "state": state, **columns}
        if await self._commit.write("finish", ("finish", claim.task_id, None, 0), row) is None:
            raise _fenced(claim)


def _fenced(claim: Claim) -> Fenced:
    return Fenced(f"task {claim.task_id} is no longer at epoch {claim.epoch}: another worker owns it")
