"""A history of registers, and whether a database that keeps its word could have produced it: pure.

Each key is a register with versions: every write that takes effect makes the next version. What is known of a history
are the operations of many processes, each with the token it was given and the token it ended with.
"""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared.db.tokens import CausalToken, parse

Kind = Literal["write", "read"]
Outcome = Literal["ok", "unknown", "failed"]
FIRST = "first"
"""The value of version 0, which nobody wrote."""
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Operation:
    """One write or read of one process.

    Attributes:
        version: Made by the write, or read; None when it is not known.
        needs: The token that it was given: it must not miss what led to that token.
        token: The token that it ended with.
        called: Seconds on a clock that all processes share.
        outcome: `unknown`: the write may have taken effect or not, or may yet; `failed`: it certainly has not.
    """

    process: int
    kind: Kind
    key: int
    value: str
    version: int | None
    needs: CausalToken | None
    token: CausalToken | None
    called: float
    returned: float
    outcome: Outcome = "ok"

    def to_json(self) -> str:
        """One line."""
        told: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        told |= {name: None if told[name] is None else str(told[name]) for name in ("needs", "token")}
        return json.dumps(told)

    @classmethod
    def from_json(cls, line: str) -> "Operation":
        """From one line."""
        told = json.loads(line)
        return cls(**{**told, "needs": parse(told["needs"]), "token": parse(told["token"])})


def check(history: Iterable[Operation], *, last: Mapping[int, tuple[str, int]] | None = None) -> list[str]:
    """What cannot be: one sentence each; empty for a history without fault.

    Per key there is one order of versions, which agrees with time; a read returns a version that was there before it
    ended, at least the newest of what its token knows of: acknowledged writes, and reads of anybody. Writes of unknown
    end may count or not. In the end, all acknowledged writes are in.

    Args:
        last: Value and version of each key after all operations, as the primary has them.
    """
    by_key: dict[int, list[Operation]] = defaultdict(list)
    for one in history:
        by_key[one.key].append(one)
    wrong: list[str] = []
    for key, operations in sorted(by_key.items()):
        writes = {one.value: one for one in operations if one.kind == "write"}
        if len(writes) != sum(one.kind == "write" for one in operations):
            raise ValueError(f"key {key}: two writes of one value cannot be told apart")
        versions = _versions(operations, (last or {}).get(key))
        wrong += _forked(key, operations, versions)
        wrong += _invented(operations, writes)
        wrong += _against_time(operations, versions)
        wrong += _behind_tokens(operations)
        if last is not None:
            wrong += _missing(key, operations, last[key])
    return wrong


def _versions(operations: Sequence[Operation], last: tuple[str, int] | None) -> dict[str, int]:
    """The version of each value, wherever somebody was told."""
    known = {one.value: one.version for one in operations if one.version is not None and one.outcome == "ok"}
    if last is not None:
        known.setdefault(last[0], last[1])
    return known


def _forked(key: int, operations: Sequence[Operation], versions: Mapping[str, int]) -> list[str]:
    """One version is one value, and one value one version: else a write was lost, and its place taken."""
    values: dict[int, str] = {0: FIRST}
    wrong = []
    told = [(one.version, one.value) for one in operations if one.version is not None and one.outcome == "ok"]
    for version, value in sorted({*told, *((version, value) for value, version in versions.items())}):
        if values.setdefault(version, value) != value:
            wrong.append(f"key {key}: version {version} is both {values[version]} and {value}: a write was lost")
        if versions[value] != version:
            wrong.append(f"key {key}: {value} is both version {versions[value]} and {version}: it was written twice")
    return wrong


def _invented(operations: Sequence[Operation], writes: Mapping[str, Operation]) -> list[str]:
    wrong = []
    for one in operations:
        if one.kind != "read" or one.outcome != "ok" or one.value == FIRST:
            continue
        write = writes.get(one.value)
        if write is None:
            wrong.append(f"{_told(one)}, which nobody wrote")
        elif write.outcome == "failed":
            wrong.append(f"{_told(one)}, whose writer was told that it had failed")
        elif write.called > one.returned:
            wrong.append(f"{_told(one)} before it was written")
    return wrong


def _against_time(operations: Sequence[Operation], versions: Mapping[str, int]) -> list[str]:
    """A write that begins after another was acknowledged comes after it."""
    writes = [one for one in operations if one.kind == "write" and one.value in versions]
    acknowledged = sorted((one.returned, versions[one.value]) for one in writes if one.outcome == "ok")
    newest = _running_max([version for _, version in acknowledged])
    ends = [returned for returned, _ in acknowledged]
    wrong = []
    for one in writes:
        before = bisect_right(ends, one.called) - 1
        if before >= 0 and newest[before] > versions[one.value]:
            wrong.append(f"{_told(one)} as version {versions[one.value]}, after version {newest[before]} was there")
    return wrong


def _behind_tokens(operations: Sequence[Operation]) -> list[str]:
    """A read sees what its token knows of: writes that ended with that token or an earlier one, and reads likewise.

    And that had ended before the read began, as all have that a token can have come from: a position may lie beyond a
    commit that still waits for its standby and that nobody on the primary can see yet.
    """
    wrong = []
    reads = [one for one in operations if one.kind == "read" and one.outcome == "ok" and one.needs is not None]
    for kind, what in (("write", "misses"), ("read", "goes back behind")):
        known = sorted(
            (one.returned, _place(one.token), one.version)
            for one in operations
            if one.kind == kind and one.outcome == "ok" and one.token is not None and one.version is not None
        )
        ends = [returned for returned, _, _ in known]
        for one in reads:
            assert one.needs is not None
            limit, version = _place(one.needs), one.version or 0
            before = known[: bisect_right(ends, one.called)]
            newest = max((seen for _, place, seen in before if place <= limit), default=0)
            if newest > version:
                wrong.append(f"{_told(one)} version {version} and {what} version {newest}, which it knew of")
    return wrong


def _missing(key: int, operations: Sequence[Operation], last: tuple[str, int]) -> list[str]:
    value, version = last
    newest = max((one for one in operations if one.outcome == "ok"), key=lambda one: one.version or 0, default=None)
    if newest is None or (newest.version or 0) <= version:
        return []
    return [f"key {key} ends with version {version} ({value}): {_told(newest)} version {newest.version} is lost"]


def _running_max(versions: Sequence[int]) -> list[int]:
    found: list[int] = []
    for version in versions:
        found.append(max(version, found[-1]) if found else version)
    return found


def _place(token: CausalToken) -> Place:
    return token.timeline, token.lsn


def _told(one: Operation) -> str:
    verb = "writes" if one.kind == "write" else "reads"
    return f"process {one.process} at {one.called:.3f} s {verb} {one.value} at key {one.key}"
