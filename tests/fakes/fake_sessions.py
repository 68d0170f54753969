"""The truth and the cache of session memory, in memory, with switches to break them."""

from collections.abc import Collection, Sequence
from uuid import UUID

from shared.db.tokens import CausalToken, merged
from shared.errors import DatabaseUnavailable, SessionUnavailable, ShardMoved
from shared.llm.messages import Message
from shared.memory.ports import SEALED_TEXT, Cached, StoredMessage


class FakeTruth:
    """A `SessionTruth`."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, StoredMessage]] = []
        self.numbers: set[tuple[UUID, int]] = set()
        self.is_down = False
        self.reads = 0
        self.away: set[str] = set()
        """Sessions that are on another shard."""

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

    async def check_here(self, tenant: str, session_id: str) -> None:
        """Whether it is on this shard."""
        self._check()
        if session_id in self.away:
            raise ShardMoved(f"session {session_id!r} is on another shard")

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


def is_covered(one: CausalToken, other: CausalToken) -> bool:
    """Whether a read that does not miss `other` does not miss `one` either."""
    ahead = merged(one, other)
    assert ahead is not None
    return (ahead.system_id, ahead.timeline, ahead.lsn) == (other.system_id, other.timeline, other.lsn)


class FakeCache:
    """A `SessionCache` without a time to live."""

    def __init__(self, *, keep: int = 40) -> None:
        self.keep = keep
        self.entries: dict[str, dict[int, StoredMessage]] = {}
        self.complete: set[str] = set()
        self.tokens: dict[str, CausalToken] = {}
        self.is_down = False
        self.calls = 0

    async def read(self, key: str) -> Cached:
        """The entry if a fill has declared it complete."""
        self._check()
        token = self.tokens.get(key)
        if key not in self.complete:
            return Cached(None, token)
        return Cached(tuple(self.entries[key][identity] for identity in sorted(self.entries[key])), token)

    async def push(
        self, key: str, stored: Sequence[StoredMessage], *, is_fill: bool, token: CausalToken | None = None
    ) -> None:
        """Merge by id and keep the newest."""
        self._check()
        if not stored and not is_fill:
            return
        known = self.tokens.get(key)
        if is_fill and (token is None or (known is not None and is_covered(known, token))):
            self.complete.add(key)
        elif not is_fill and token is not None:
            self.tokens[key] = known if known is not None and not is_covered(known, token) else token
        elif not is_fill:
            self.tokens.pop(key, None)
        merged = {**self.entries.get(key, {}), **{one.id: one for one in stored}}
        self.entries[key] = dict(sorted(merged.items())[-self.keep :])

    async def drop(self, keys: Collection[str]) -> None:
        """Forget."""
        self._check()
        for key in keys:
            self.entries.pop(key, None)
            self.complete.discard(key)
            self.tokens.pop(key, None)

    def wipe(self) -> None:
        """Forget everything, as a restarted Redis does."""
        self.entries.clear()
        self.complete.clear()
        self.tokens.clear()

    def _check(self) -> None:
        self.calls += 1
        if self.is_down:
            raise SessionUnavailable("the fake is down")
