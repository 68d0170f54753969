"""The journal of one run: what was done before comes back, what is new is written before and after it happens."""

import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import select

from shared.db.database import Database
from shared.db.tables import steps
from shared.errors import BadInput, Fenced, FleetError, StepChanged, from_dict
from shared.ledger.group_commit import GroupCommit

MAX_NAME = 200
"""Characters of a step's name: it is part of an index, whose rows PostgreSQL limits to 2704 bytes."""
StepKind = Literal["llm", "tool", "retrieval", "step"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The outcome of a step of an earlier attempt; `failure` is the FleetError that it ended with, as a dict."""

    fingerprint: str
    result: Any
    failure: Mapping[str, Any] | None = None


def fingerprint(name: str, ordinal: int, request: Any) -> str:
    """What a step asked for: a hash of its name, its ordinal and the canonical JSON of its request.

    Raises: BadInput when the request is not JSON.
    """
    try:
        canonical = json.dumps([name, ordinal, request], sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the request of step {name!r} is not JSON: {error}", step=name) from None
    return hashlib.blake2b(canonical.encode(errors="surrogatepass"), digest_size=16).hexdigest()


async def load_recorded(database: Database, task_id: UUID) -> dict[tuple[str, int], Recorded]:
    """The outcomes of a task's steps, by (name, ordinal).

    A FleetError is an outcome too: an agent that caught it (no vector store: answer without notes) went on accordingly,
    and its later steps are only the same again if it sees the same again. Other failures are tried anew.
    """
    query = select(steps.c.name, steps.c.ordinal, steps.c.fingerprint, steps.c.state, steps.c.result).where(
        steps.c.task_id == task_id, steps.c.state.in_(["done", "failed"])
    )
    async with database.unit(mode="ro") as unit:
        rows = (await unit.execute(query)).all()
    found = {(row.name, row.ordinal): recorded_of(row.fingerprint, row.state, row.result) for row in rows}
    return {key: one for key, one in found.items() if one is not None}


def recorded_of(mark: str, state: str, result: Any) -> Recorded | None:
    """What a stored step means for the next attempt; None: try it anew."""
    if state == "done":
        return Recorded(mark, result)
    return Recorded(mark, None, result["error"]) if isinstance(result["error"], dict) else None


class Journal:
    """Steps of one claimed run. Not shared between runs.

    Args:
        recorded: Completed steps of earlier attempts; empty on a first attempt.
    """

    def __init__(
        self, commit: GroupCommit, *, task_id: UUID, epoch: int, recorded: Mapping[tuple[str, int], Recorded]
    ) -> None:
        self._commit = commit
        self._task_id = task_id
        self._epoch = epoch
        self._recorded = recorded
        self._seen: Counter[str] = Counter()
        self.replayed = 0
        self.executed = 0

    async def step(
        self,
        name: str,
        *,
        kind: StepKind,
        request: Any,
        call: Callable[[], Awaitable[Any]],
        usage_of: Callable[[Any], Mapping[str, Any] | None] = lambda _result: None,
    ) -> Any:
        """Run a step once: its recorded result if it was completed before, else intent, call, result.

        Args:
            request: JSON-safe; two attempts must ask for the same.
            call: Does the work and returns a JSON-safe result.
            usage_of: What the result cost, for the books.

        Raises: StepChanged when this attempt asks for something else than the journal has; Fenced when the run was
            given to another worker; BadInput when the request or the result is not JSON; and what `call` raises.
        """
        if not 0 < len(name) <= MAX_NAME:
            raise BadInput(f"a step's name must have 1 to {MAX_NAME} characters: pass what varies as an argument")
        ordinal = self._seen[name]
        self._seen[name] += 1
        mark = fingerprint(name, ordinal, request)
        recorded = self._recorded.get((name, ordinal))
        if recorded is not None:
            if recorded.fingerprint != mark:
                raise StepChanged(
                    f"step {name!r} #{ordinal} asks for something else than before the restart: "
                    "let it depend on its inputs only, or move what changes (time, random) into a step of its own",
                    step=name, ordinal=ordinal,
                )  # fmt: skip
            self.replayed += 1
            if recorded.failure is not None:
                raise from_dict(recorded.failure)
            return recorded.result
        await self._write("intent", name, ordinal, {"kind": kind, "fingerprint": mark})
        self.executed += 1
        try:
            result = await call()
        except Exception as error:
            told = error.as_dict() if isinstance(error, FleetError) else repr(error)
            try:
                await self._write("result", name, ordinal, {"state": "failed", "result": {"error": told}})
            except BadInput:  # its text cannot be stored: then only its kind
                name_of_error = type(error).__name__
                await self._write("result", name, ordinal, {"state": "failed", "result": {"error": name_of_error}})
            raise
        usage = usage_of(result)
        done = {"state": "done", "result": result, "usage": dict(usage) if usage else None}
        try:
            await self._write("result", name, ordinal, done)
        except BadInput as error:
            raise BadInput(f"the result of step {name!r} is {error.message}", step=name) from None
        return result

    async def _write(self, kind: Literal["intent", "result"], name: str, ordinal: int, values: dict[str, Any]) -> None:
        row = {"task_id": str(self._task_id), "name": name, "ordinal": ordinal, "epoch": self._epoch, **values}
        if await self._commit.write(kind, (kind, self._task_id, name, ordinal), row) is None:
            raise Fenced(f"task {self._task_id} is no longer at epoch {self._epoch}: another worker owns it")
