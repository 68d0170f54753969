"""The ledger's steps in a dict: what a journal writes, and what a resumed run finds."""

import json
from typing import Any
from uuid import UUID

from shared.errors import BadInput
from shared.ledger.group_commit import GroupCommit, Key, Written
from shared.ledger.journal import Journal, Recorded
from shared.ledger.statements import Kind


class FakeCommit(GroupCommit):
    """A `GroupCommit` whose disk is a dict; `history` has every write in order."""

    def __init__(self) -> None:
        self.history: list[tuple[Kind, str | None, int]] = []
        self.steps: dict[tuple[str, int], dict[str, Any]] = {}
        self.is_fenced = False

    async def write(self, kind: Kind, key: Key, row: dict[str, Any]) -> Written | None:
        """Keep the row as JSON would; nothing is written for a worker that lost its epoch."""
        try:
            kept = json.loads(json.dumps(row, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BadInput(f"not JSON ({error})") from None
        if self.is_fenced:
            return None
        _, _, name, ordinal = key
        self.history.append((kind, name, ordinal))
        if name is not None:
            self.steps[name, ordinal] = {**self.steps.get((name, ordinal), {}), **kept}
        return Written(row["epoch"], 1)

    def journal(self, task_id: UUID, *, epoch: int = 1) -> Journal:
        """The journal of a claim, with what earlier claims completed."""
        recorded = {
            key: Recorded(row["fingerprint"], row["result"])
            for key, row in self.steps.items()
            if row.get("state") == "done"
        }
        return Journal(self, task_id=task_id, epoch=epoch, recorded=recorded)
