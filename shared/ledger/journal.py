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
from shared.errors import BadInput, Fenced, StepChanged
from shared.ledger.group_commit import GroupCommit

StepKind = Literal["llm", "tool", "retrieval", "step"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A completed step of an earlier attempt."""

    fingerprint: str
    result: Any


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
    """The completed steps of a task, by (name, ordinal)."""
    query = select(steps.c.name, steps.c.ordinal, steps.c.fingerprint, steps.c.result).where(
        steps.c.task_id == task_id, steps.c.state == "done"
    )
    async with database.unit(mode="ro") as unit:
        rows = (await unit.execute(query)).all()
    return {(row.name, row.ordinal): Recorded(row.fingerprint, row.result) for row in rows}


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
            return recorded.result
        await self._write("intent", name, ordinal, {"kind": kind, "fingerprint": mark})
        self.executed += 1
        try:
            result = await call()
        except Exception as error:
            await self._write("result", name, ordinal, {"state": "failed", "result": {"error": repr(error)}})
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
