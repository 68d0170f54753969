"""The journal of one run: what was done before comes back, what is new is written before and after it happens."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn
from uuid import UUID

import structlog

from shared.errors import BadInput, Fenced, FleetError, SealKeyUnknown, StepChanged, from_dict
from shared.ledger.branches import Branches, in_step, now
from shared.ledger.group_commit import GroupCommit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.records import Recorded, fingerprint
from shared.ledger.retry import ONCE, Retry, next_wait_s
from shared.ledger.suspension import Suspension
from shared.ledger.vault import NO_VAULT, Vault, blob_role, step_role

log = structlog.get_logger()

MAX_NAME = 200
"""Characters of a step's name: it is part of an index, whose rows PostgreSQL limits to 2704 bytes."""
StepKind = Literal["llm", "tool", "retrieval", "step", "sleep", "signal", "spawn", "children"]
OnChange = Literal["reuse", "rerun", "pause"]
"""What a resumed run does with a completed step whose request has changed."""
_RNG = random.Random()
"""One for all runs: a new one asks the system for 2500 random bytes."""


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    ordinal: int
    mark: str


@dataclass(frozen=True, slots=True)
class Look:
    """What a wait found: whether it is over, with what, and how many wakes the task had had when it was looked at."""

    is_over: bool
    value: Any = None
    wakes: int = 0


class Journal:
    """Steps of one claimed run. Not shared between runs; branches of one run may use it at once.

    Args:
        recorded: Steps of earlier claims; empty on a first one.
        on_change: What to do with a completed step whose request has changed.
        vault: Seals results; `recorded` is open already.
    Attributes:
        epoch: Of the claim; every write carries it.
        books_cuts: Says of a call that is cut off whether it is over (a cancel, the agent's own timeout) rather than in
            doubt (the worker leaves).
        in_doubt: Calls of this task so far that nobody saw end; `doubts_met`: those among them that were made anew.
    """

    def __init__(
        self, commit: GroupCommit, knobs: LedgerKnobs, *, task_id: UUID, epoch: int,
        recorded: Mapping[tuple[str, int], Recorded], on_change: OnChange = "pause", rng: random.Random | None = None,
        vault: Vault = NO_VAULT,
    ) -> None:  # fmt: skip
        self.books_cuts: Callable[[], bool] = lambda: True
        self.replayed = 0
        self.executed = 0
        self.doubts_met = 0
        self.in_doubt = sum(one.in_doubt + (one.state == "doubt") for one in recorded.values())
        self._commit = commit
        self._knobs = knobs
        self._task_id = task_id
        self.epoch = epoch
        self._recorded = recorded
        self._on_change = on_change
        self._rng = rng or _RNG
        self._vault = vault
        self._loaded_at = time.monotonic()
        self._seen: Counter[str] = Counter()
        self._branches = Branches(here_s=knobs.suspend_after_s)
        self._last_writes: set[asyncio.Task[None]] = set()

    async def step(
        self, name: str, *, kind: StepKind, request: Any, call: Callable[[], Awaitable[Any]],
        usage_of: Callable[[Any], Mapping[str, Any] | None] = lambda _result: None,
        usage_if_cut: Callable[[], Mapping[str, Any] | None] = lambda: None, retry: Retry = ONCE,
    ) -> Any:  # fmt: skip
        """Run a step once: its recorded result if it was completed before, else intent, call, result.

        Args:
            request: JSON-safe; two claims must ask for the same.
            call: Does the work and returns a JSON-safe result.
            usage_of: What the result cost, for the books.
            usage_if_cut: What a call that is cancelled in flight has cost by then.
            retry: Whether a failure is tried again; waits over `suspend_after_s` suspend the run.

        Raises: Fenced when the run was given to another worker; BadInput when the request or the result is not JSON;
            what `call` raises; Suspended when the run is to be put down here, as it is when a key is missing.
        """
        place = self._next_place(name, request)
        recorded = await self._known(place)
        if recorded is not None and recorded.state in ("done", "failed"):
            return self._replay(recorded)
        tries = recorded.executions if recorded is not None else 0
        if recorded is not None and recorded.state == "waiting":
            await self._sit_out(self._left_s(recorded) or 0.0)
        while True:
            try:
                async with self._branches.step():
                    self.doubts_met += recorded is not None and recorded.state == "doubt"
                    recorded = None
                    outcome = await self._try(place, kind, call, usage_of, usage_if_cut, retry, tries := tries + 1)
            except SealKeyUnknown as error:
                await self._park(error)
            if outcome.is_over:
                return outcome.value
            await self._sit_out(outcome.value)

    async def wait(
        self, name: str, *, kind: StepKind, request: Any, wait_s: float | None,
        look: Callable[[], Awaitable[Look]], suspension: Suspension, expired: Callable[[], FleetError | None],
    ) -> Any:  # fmt: skip
        """Wait for something outside, without a slot when it takes long.

        Args:
            wait_s: Seconds until it is over at the latest; None: no limit but the task's deadline.
            look: Whether what is awaited has come.
            suspension: What wakes the run, should it have to be put down.
            expired: The error when the time is up; None: then it is simply over.

        Raises: that error; Fenced; Suspended.
        """
        if in_step.get():
            raise BadInput(f"{name!r} waits inside a step: wait in the agent itself, so that the run can be put down")
        place = self._next_place(name, request)
        recorded = await self._known(place)
        if recorded is not None and recorded.state in ("done", "failed"):
            return self._replay(recorded)
        async with self._branches.step():
            if recorded is None or recorded.state != "waiting":
                await self._write("intent", place, {**_intent(kind, place), "waits": True, "wait_s": wait_s})
                left_s, self.executed = wait_s, self.executed + 1
            else:
                left_s = self._left_s(recorded)
        until = None if left_s is None else now() + left_s
        while True:
            try:
                async with self._branches.step():
                    found = await look()
                    if found.is_over:
                        await self._store(place, found.value, None)
                        return found.value
            except SealKeyUnknown as error:
                await self._park(error)
            if until is not None and until <= now():
                return await self._expire(place, expired())
            if suspension.is_looked_for:
                suspension = replace(suspension, seen_wakes=found.wakes)
            await self._branches.rest(suspension, until)

    @property
    def suspension(self) -> Suspension | None:
        """Set once the run shall be put down: no step begins after that."""
        return self._branches.suspension

    @property
    def is_left(self) -> bool:
        """Whether the agent was told so: what it returned or raised after that means nothing."""
        return self._branches.is_left

    def put_down(self, suspension: Suspension) -> None:
        """Let the run end at its next step boundary; what is in flight is finished first."""
        self._branches.put_down(suspension)

    async def settled(self) -> None:
        """Return when no step is in flight any more."""
        await self._branches.settled()

    @property
    def is_writing(self) -> bool:
        """Whether the end of a step that was cut off is still being written; await `written` before the run's own."""
        return bool(self._last_writes)

    async def written(self) -> None:
        """Return when the ends of all steps that were cut off are written, or are another worker's to write."""
        while self._last_writes:
            await asyncio.wait(self._last_writes)

    async def _try(
        self, place: _Place, kind: StepKind, call: Callable[[], Awaitable[Any]], usage_of: Any, usage_if_cut: Any,
        retry: Retry, tries: int,
    ) -> Look:  # fmt: skip
        """One execution; not over: it failed and is to be tried again in as many seconds as the value says."""
        await self._write("intent", place, _intent(kind, place))
        self.executed += 1
        outer = in_step.set(True)
        try:
            result = await call()
        except asyncio.CancelledError:
            if self.books_cuts():
                self._write_beside(self._write_failure(place, "cut off", usage_if_cut()))
            raise
        except SealKeyUnknown:  # no outcome of the step: tried again once the key is there
            await self._write("result", place, {"state": "waiting", "wait_s": 0.0})
            raise
        except Exception as error:
            wait_s = next_wait_s(error, tries=tries, retry=retry, rng=self._rng)
            if wait_s is None:
                told = error.as_dict() if isinstance(error, FleetError) else repr(error)
                usage = None if isinstance(error, FleetError) else usage_if_cut()  # a time limit, say, cut it off
                await self._write_surely(lambda: self._write_failure(place, told, usage))
                raise
            await self._write("result", place, {"state": "waiting", "wait_s": wait_s})
            return Look(is_over=False, value=wait_s)
        finally:
            in_step.reset(outer)
        await self._write_surely(lambda: self._keep(place, result, usage_of(result)))
        return Look(is_over=True, value=result)

    async def _write_surely(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Write how a step ended; cut off meanwhile, it is written all the same: what is paid for is kept."""
        try:
            await write()
        except (Fenced, BadInput, GeneratorExit):
            raise
        except BaseException:
            self._write_beside(write())
            raise

    def _write_beside(self, write: Coroutine[Any, Any, None]) -> None:
        """Write how a step ended whose agent goes on at once: no further cancellation reaches this write.

        It ends when the database has it, or with the worker's place in the ledger.
        """
        writing = asyncio.create_task(write)
        self._last_writes.add(writing)
        writing.add_done_callback(self._wrote_beside)

    def _wrote_beside(self, writing: "asyncio.Task[None]") -> None:
        self._last_writes.discard(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            log.warning("journal.end_unwritten", task_id=str(self._task_id), cause=repr(error))

    async def _keep(self, place: _Place, result: Any, usage: Mapping[str, Any] | None) -> None:
        """Store a result; one that cannot be stored is a failure: it has been seen to end, and is paid for."""
        try:
            await self._store(place, result, usage)
        except BadInput as error:
            await self._write_failure(place, error.as_dict(), usage)
            raise

    async def _store(self, place: _Place, result: Any, usage: Mapping[str, Any] | None) -> None:
        done: dict[str, Any] = {"state": "done", "usage": dict(usage) if usage else None}
        try:
            if _is_large(result, self._knobs.blob_bytes):
                await self._write("blob", place, {"data": self._sealed(result, blob_role(place.name, place.ordinal))})
                done |= {"result": None, "in_blob": True}
            else:
                done["result"] = self._sealed(result, step_role(place.name, place.ordinal))
            await self._write("result", place, done)
        except BadInput as error:
            raise BadInput(f"the result of step {place.name!r} is {error.message}", step=place.name) from None

    async def _write_failure(self, place: _Place, told: Any, usage: Mapping[str, Any] | None) -> None:
        try:
            result = self._sealed({"error": told}, step_role(place.name, place.ordinal))
            await self._write("result", place, {"state": "failed", "result": result, "usage": usage})
        except BadInput:  # its text cannot be stored: then only its kind
            bare = "a failure whose text cannot be stored"
            kept = {"code": told["code"], "message": bare} if isinstance(told, dict) else bare
            await self._write("result", place, {"state": "failed", "result": {"error": kept}, "usage": usage})

    async def _expire(self, place: _Place, error: FleetError | None) -> None:
        async with self._branches.step():
            if error is None:
                await self._store(place, None, None)
                return
            await self._write_failure(place, error.as_dict(), None)
            raise error

    async def _sit_out(self, wait_s: float) -> None:
        """Wait for the time of a step's next try."""
        until = now() + wait_s
        while until > now():
            await self._branches.rest(Suspension(kind="retry"), until)

    def _next_place(self, name: str, request: Any) -> _Place:
        if not 0 < len(name) <= MAX_NAME:
            raise BadInput(f"a step's name must have 1 to {MAX_NAME} characters: pass what varies as an argument")
        ordinal = self._seen[name]
        self._seen[name] += 1
        return _Place(name, ordinal, fingerprint(name, ordinal, request))

    async def _known(self, place: _Place) -> Recorded | None:
        """What an earlier claim recorded here, as far as it still counts."""
        recorded = self._recorded.get((place.name, place.ordinal))
        if recorded is None or recorded.fingerprint == place.mark:
            return recorded
        if recorded.state not in ("done", "failed"):
            return None
        if self._on_change == "reuse":
            return recorded
        if self._on_change == "rerun":
            return None
        changed = StepChanged(
            f"step {place.name!r} #{place.ordinal} asks for something else than before the restart: let it depend on "
            "its inputs only, or resume the task with its old result or a new one",
            step=place.name, ordinal=place.ordinal, fingerprint=place.mark,
        )  # fmt: skip
        return await self._park(changed)

    async def _park(self, error: FleetError) -> NoReturn:
        """Put the run aside for an operator; the agent is not told why, lest it go on as if this were an outcome."""
        self._branches.put_down(Suspension(state="parked", error=error.as_dict()))
        await self._branches.leave()

    def _replay(self, recorded: Recorded) -> Any:
        self.replayed += 1
        if recorded.failure is not None:
            raise from_dict(recorded.failure)
        return recorded.result

    def _left_s(self, recorded: Recorded) -> float | None:
        return None if recorded.left_s is None else recorded.left_s - (time.monotonic() - self._loaded_at)

    def _sealed(self, value: Any, role: str) -> Any:
        return self._vault.seal(value, task_id=self._task_id, role=role)

    async def _write(self, kind: Literal["intent", "blob", "result"], place: _Place, values: dict[str, Any]) -> None:
        row = {
            "task_id": str(self._task_id), "name": place.name, "ordinal": place.ordinal, "epoch": self.epoch, **values
        }  # fmt: skip
        if await self._commit.write(kind, (kind, self._task_id, place.name, place.ordinal), row) is None:
            raise Fenced(f"task {self._task_id} is no longer at epoch {self.epoch}: another worker owns it")


def _intent(kind: StepKind, place: _Place) -> dict[str, Any]:
    return {"kind": kind, "fingerprint": place.mark}


def _is_large(result: Any, limit_bytes: int) -> bool:
    try:
        return len(json.dumps(result)) > limit_bytes
    except (TypeError, ValueError, RecursionError):
        return False  # the write itself says what is wrong with it
