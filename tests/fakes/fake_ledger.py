"""The ledger in a dict: what a journal writes and a resumed run finds, what signals and children a run waits for."""

import json
from collections import defaultdict
from concurrent.futures import Future
from typing import Any, cast
from uuid import UUID

from shared.contracts import TaskMessage
from shared.db.tokens import CausalToken
from shared.errors import BadInput
from shared.ledger.ancestry import Ancestor
from shared.ledger.group_commit import GroupCommit, Key, Written
from shared.ledger.journal import Journal, Look, OnChange
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.records import Recorded, recorded_of
from shared.ledger.runs import Runs
from shared.ledger.statements import Kind
from shared.ledger.vault import NO_VAULT


class FakeCommit(GroupCommit):
    """A `GroupCommit` whose disk is a dict; `history` has every write in order, `steps` what a reader would find."""

    def __init__(self) -> None:
        self.history: list[tuple[Kind, str | None, int]] = []
        self.steps: dict[tuple[str, int], dict[str, Any]] = {}
        self.blobs: dict[tuple[str, int], Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.is_fenced = False
        self.becomes: dict[Kind, str] = {}
        """The state that a write of this kind ends in, where it is not the one asked for."""
        self.claims_at: CausalToken | None = None
        """Where the log is at a claim."""
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
            self._keep(kind, (name, ordinal), kept)
        state = self.becomes.get(kind, row.get("state", "running"))
        return Written(row.get("epoch", 0), 1, state, token=self.claims_at if kind == "claim" else None)

    def _keep(self, kind: Kind, place: tuple[str, int], kept: dict[str, Any]) -> None:
        if kind == "blob":
            self.blobs[place] = kept["data"]
            return
        before = self.steps.get(place, {})
        if kind == "intent":
            is_wait = kept.pop("waits", False)
            kept |= {
                "state": "waiting" if is_wait else "intent",
                "executions": before.get("executions", 0)
                + (not is_wait and (before.get("state"), before.get("epoch")) != ("intent", kept["epoch"])),
                "in_doubt": before.get("in_doubt", 0)
                + (before.get("state") == "intent" and before["epoch"] != kept["epoch"]),
            }
        self.steps[place] = {**before, **kept}

    def recorded(self) -> dict[tuple[str, int], Recorded]:
        """What a later claim loads; no time has passed since."""
        return {
            place: recorded_of(
                row["fingerprint"],
                row["state"],
                self.blobs[place] if row.get("in_blob") else row.get("result"),
                left_s=row.get("wait_s"),
                executions=row["executions"],
                in_doubt=row["in_doubt"],
            )
            for place, row in self.steps.items()
        }

    def journal(
        self, task_id: UUID, *, epoch: int = 1, on_change: OnChange = "pause", knobs: LedgerKnobs | None = None
    ) -> Journal:
        """The journal of a claim, with what earlier claims completed."""
        return Journal(
            self,
            knobs or LedgerKnobs(),
            task_id=task_id,
            epoch=epoch,
            recorded=self.recorded() if epoch > 1 else {},
            on_change=on_change,
        )


class FakeRuns(Runs):
    """What a worker asks the ledger beside the journal: signals sent, children accepted and ended, parents woken."""

    def __init__(self, commit: FakeCommit) -> None:
        self._commit = commit
        self._knobs = LedgerKnobs()
        self._vault = NO_VAULT
        self.signals: defaultdict[str, list[Any]] = defaultdict(list)
        self.children: dict[UUID, TaskMessage] = {}
        self.ended: dict[UUID, dict[str, Any]] = {}
        self.wakes = 0
        self.looks = 0
        self.is_crowded = False
        self.held: list[UUID] = []
        self.woken: list[UUID] = []
        self.cancelled: list[UUID] = []
        self.journals: list[Journal] = []
        self.above: tuple[Ancestor, ...] = ()

    async def journal(self, claim: Any, *, on_change: OnChange = "pause") -> Journal:
        """The journal of a claim."""
        commit = cast(FakeCommit, self._commit)
        self.journals.append(commit.journal(claim.task_id, epoch=claim.epoch, on_change=on_change))
        return self.journals[-1]

    async def ancestors(self, task_id: UUID) -> tuple[Ancestor, ...]:
        """Who started it."""
        self.looks += 1
        return self.above

    async def accept_child(self, message: TaskMessage, *, parent_epoch: int, is_published: bool) -> bool:
        """Keep a child; a second time changes nothing."""
        self.children.setdefault(message.id, message)
        if not is_published:
            self.held.append(message.id)
        return self.is_crowded

    async def look_for_signal(self, task_id: UUID, *, name: str, number: int) -> Look:
        """The signal of that number, if it was sent."""
        self.looks += 1
        sent = self.signals[name]
        return Look(len(sent) > number, sent[number] if len(sent) > number else None, self.wakes)

    async def look_for_children(self, task_id: UUID, ids: tuple[UUID, ...]) -> Look:
        """How they ended, once all have."""
        self.looks += 1
        is_over = all(one in self.ended for one in ids)
        return Look(is_over, [self.ended[one] for one in ids] if is_over else None, self.wakes)

    async def wake(self, task_id: UUID) -> bool:
        """Remember who was woken; it can go on."""
        self.woken.append(task_id)
        return True

    async def cancel_children(self, task_id: UUID) -> None:
        """Remember whose children were cancelled."""
        self.cancelled.append(task_id)


class FakeHome:
    """What a run needs of its worker: a ledger, a publisher, a poller."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.ledger = LedgerKnobs()
        self.published: list[TaskMessage] = []
        self.hurries = 0

    def publish(self, message: TaskMessage) -> "Future[None]":
        """Confirmed at once."""
        self.published.append(message)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def hurry_poll(self) -> None:
        """Count the calls."""
        self.hurries += 1
