"""One worker's hold on the ledger: claim, journal, finish, hand back."""

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.errors import BadInput, Fenced, FleetError
from shared.ledger.group_commit import GroupCommit
from shared.ledger.journal import Journal, load_recorded
from shared.ledger.rows import refuse_nul, task_row


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that is this worker's: every write carries its epoch."""

    task_id: UUID
    epoch: int
    attempt: int


class Runs:
    """What one worker may do to tasks. All methods return once the change is on disk."""

    def __init__(self, database: Database, commit: GroupCommit) -> None:
        self._database = database
        self._commit = commit

    async def claim(self, message: TaskMessage) -> Claim | None:
        """Make a task this worker's own, adding it to the ledger when only the message knew it.

        The caller never claims a task that it is running already.

        Returns: None when the task is finished or another worker has it: the message is a duplicate.
        """
        row = task_row(message)
        refuse_nul(row)
        written = await self._commit.write("claim", ("claim", message.id, None, 0), row)
        return Claim(message.id, written.epoch, written.attempt) if written else None

    async def journal(self, claim: Claim) -> Journal:
        """The run's journal, with the completed steps of its earlier claims."""
        recorded = await load_recorded(self._database, claim.task_id) if claim.epoch > 1 else {}
        return Journal(self._commit, task_id=claim.task_id, epoch=claim.epoch, recorded=recorded)

    async def succeed(self, claim: Claim, output: Any, report: dict[str, Any]) -> None:
        """End the task with its output.

        Raises: Fenced when another worker owns it; BadInput when the output cannot be stored.
        """
        try:
            await self._finish(claim, "succeeded", output=output, report=report)
        except BadInput as error:
            raise BadInput(f"the agent's output is {error.message}") from None

    async def fail(self, claim: Claim, error: FleetError, report: dict[str, Any]) -> None:
        """End the task with its error; one that cannot be stored (U+0000 in its text) ends it all the same.

        Raises: Fenced when another worker owns it.
        """
        try:
            await self._finish(claim, "failed", error=error.as_dict(), report=report)
        except BadInput as cause:
            bare = FleetError(f"the task failed with {error.code}, whose text or report is {cause.message}")
            await self._finish(claim, "failed", error={**bare.as_dict(), "code": error.code}, report={})

    async def release(self, claim: Claim) -> None:
        """Hand the task back unfinished: it costs no attempt, and the keeper publishes it again at once."""
        row = {"id": str(claim.task_id), "epoch": claim.epoch}
        await self._commit.write("release", ("release", claim.task_id, None, 0), row)

    async def _finish(self, claim: Claim, state: Literal["succeeded", "failed"], **columns: Any) -> None:
        row = {"id": str(claim.task_id), "epoch": claim.epoch, "state": state, **columns}
        if await self._commit.write("finish", ("finish", claim.task_id, None, 0), row) is None:
            raise Fenced(f"task {claim.task_id} is no longer at epoch {claim.epoch}: another worker owns it")
