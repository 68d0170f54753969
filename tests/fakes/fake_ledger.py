"""The ledger's steps in a dict: what a journal writes, and what a resumed run finds."""

import json
from typing import Any
from uuid import UUID

from shared.errors import BadInput
from shared.ledger.group_commit import GroupCommit, Key, Written
from shared.ledger.journal import Journal, recorded_of
from shared.ledger.statements import Kind


class FakeCommit(GroupCommit):
    """A `GroupCommit` whose disk is a dict; `history` has every write in order."""

    def __init__(self) -> None:
        self.history: list[tuple[Kind, str | None, int]] = []
        self.steps: dict[tuple[str, int], dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.is_fenced = False
        self._fenced_after: int | None = None

    def fence_after(self, writes: int) -> None:
        """Give the run to somebody else after so many more writes."""
        self._fenced_after = len(self.history) + writes

    async def write(self, kind: Kind, key: Key, row: dict[str, Any]) -> Written | None:
        """Keep the row as JSON would; nothing is written for a worker that lost its epoch."""
        try:
            text = json.dumps(row, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInput(f"not JSON ({error})") from None
        if "\\u0000" in text:
            raise BadInput("not storable in PostgreSQL: unsupported Unicode escape sequence")
        kept = json.loads(text)
        if self.is_fenced or len(self.history) == self._fenced_after:
            return None
        _, _, name, ordinal = key
        self.history.append((kind, name, ordinal))
        self.rows.append(kept)
        if name is not None:
            self.steps[name, ordinal] = {**self.steps.get((name, ordinal), {}), **kept}
        return Written(row["epoch"], 1)

    def journal(self, task_id: UUID, *, epoch: int = 1) -> Journal:
        """The journal of a claim, with what earlier claims completed."""
        ended = {key: row for key, row in self.steps.items() if "state" in row}
        found = {key: recorded_of(row["fingerprint"], row["state"], row["result"]) for key, row in ended.items()}
        recorded = {key: one for key, one in found.items() if one is not None}
        return Journal(self, task_id=task_id, epoch=epoch, recorded=recorded)
