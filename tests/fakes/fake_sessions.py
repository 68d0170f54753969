"""The truth and the cache of session memory, in memory, with switches to break them."""

from collections.abc import Collection, Sequence
from uuid import UUID

from shared.errors import DatabaseUnavailable, SessionUnavailable
from shared.llm.messages import Message
from shared.memory.ports import SEALED_TEXT, StoredMessage


class FakeTruth:
    """A `SessionTruth`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, StoredMessage]] = []
        self.numbers: set[tuple[UUID, int]] = set()
        self.is_down = False
        self.reads = 0

    async def append(
        self, tenant: str, session_id: str, numbered: Sequence[tuple[int, Message]], *, task_id: UUID | None
    ) -> tuple[StoredMessage, ...]:
        """Keep what is new."""
        self._check()
        stored = []
        for ordinal, message in numbered:
            if task_id is not None and (task_id, ordinal) in self.numbers:
                continue
            if task_id is not None:
                self.numbers.add((task_id, ordinal))
            stored.append(StoredMessage(len(self.rows) + 1, message))
            self.rows.append((tenant, session_id, stored[-1]))
        return tuple(stored)

    async def latest(self, tenant: str, session_id: str, *, limit: int, characters: int) -> tuple[StoredMessage, ...]:
        """The newest of one session."""
        self._check()
        self.reads += 1
        mine = [row for owner, session, row in self.rows if (owner, session) == (tenant, session_id)]
        return tuple(StoredMessage(one.id, _cut(one.message, characters)) for one in mine[-limit:])

    def _check(self) -> None:
        if self.is_down:
            raise DatabaseUnavailable("the fake is down")


def _cut(message: Message, characters: int) -> Message:
    whole = message.content
    return Message(message.role, whole if whole.startswith(SEALED_TEXT) else whole[:characters])


class FakeCache:
    """A `SessionCache` without a time to live."""

    def __init__(self, *, keep: int = 40) -> None:
        self.keep = keep
        self.entries: dict[str, dict[int, StoredMessage]] = {}
        self.complete: set[str] = set()
        self.is_down = False
        self.calls = 0

    async def read(self, key: str) -> tuple[StoredMessage, ...] | None:
        """The entry if a fill has declared it complete."""
        self._check()
        if key not in self.complete:
            return None
        return tuple(self.entries[key][identity] for identity in sorted(self.entries[key]))

    async def push(self, key: str, stored: Sequence[StoredMessage], *, is_fill: bool) -> None:
        """Merge by id and keep the newest."""
        self._check()
        if is_fill:
            self.complete.add(key)
        merged = {**self.entries.get(key, {}), **{one.id: one for one in stored}}
        self.entries[key] = dict(sorted(merged.items())[-self.keep :])

    async def drop(self, keys: Collection[str]) -> None:
        """Forget."""
        self._check()
        for key in keys:
            self.entries.pop(key, None)
            self.complete.discard(key)

    def wipe(self) -> None:
        """Forget everything, as a restarted Redis does."""
        self.entries.clear()
        self.complete.clear()

    def _check(self) -> None:
        self.calls += 1
        if self.is_down:
            raise SessionUnavailable("the fake is down")
