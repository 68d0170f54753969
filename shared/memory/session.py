"""Session memory: truth first, then the cache; the cache may fail, be cold or be gone, and the answer stays right."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import structlog

from shared.clock import Clock, SystemClock
from shared.db import tokens
from shared.db.tokens import CausalToken
from shared.errors import SealBroken, SealKeyUnknown, SessionUnavailable
from shared.llm.messages import Message, clean_text
from shared.memory.context import bounded, session_key
from shared.memory.knobs import MemoryKnobs
from shared.memory.ports import SEALED_TEXT, Cached, Seal, SessionCache, SessionTruth, StoredMessage

log = structlog.get_logger(__name__)

LOG_EVERY_S = 60.0
MAX_SUSPECTS = 10_000


class SessionMemory:
    """What agents remember of a session. One per process; safe for any number of concurrent runs.

    Why concurrent appends and rebuilds neither lose nor repeat: the cache entry is a set ordered by the truth's ids.
    A push adds its ids whether or not the entry is complete; a fill adds what the truth had and then declares the
    entry complete. A message committed before the fill read the truth is in the fill; one committed later is pushed
    after its commit. The union of both is whole, in whatever order they arrive.

    Where a replica serves the read of a fill, it may miss what was committed before it. So each push also leaves a
    causal token for its session, each fill first learns it and reads no less, and declares the entry complete only if
    nobody has pushed more meanwhile; doubt about an entry drops the token, too, and then no fill from a replica counts.

    Args:
        seal: Seals what goes into truth and cache, and opens it for a context; None: both keep it in clear text.
        is_sharded: Whether sessions may be on another shard: then each context asks the truth first, for an empty
            table says nothing about them, and what was paid for such an answer could not be remembered.
    """

    def __init__(
        self,
        truth: SessionTruth,
        cache: SessionCache,
        *,
        knobs: MemoryKnobs | None = None,
        clock: Clock | None = None,
        seal: Seal | None = None,
        is_sharded: bool = False,
    ) -> None:
        self._truth = truth
        self._cache = cache
        self._knobs = knobs or MemoryKnobs()
        self._clock = clock or SystemClock()
        self._seal = seal
        self._is_sharded = is_sharded
        self._resting_until = float("-inf")
        self._logged_at = float("-inf")
        self._suspects: dict[str, int] = {}
        self._doubts = 0

    async def context(self, tenant: str, session_id: str) -> tuple[Message, ...]:
        """The newest messages of a session, oldest first, within the knobs' bounds; empty for a new session.

        Raises: DatabaseUnavailable when the cache cannot answer and PostgreSQL does not either, ReplicaStale when no
            node may; SealKeyUnknown; ShardMoved when the session is on another shard.
        """
        if self._is_sharded:
            await self._truth.check_here(tenant, session_id)
        key = session_key(tenant, session_id)
        cached = await self._read_cache(key)
        if cached is not None:
            seen = tokens.merged(tokens.current(), cached.token)
            if seen is not None:
                tokens.note(seen)
            if cached.messages is not None:
                try:
                    return self._shown(cached.messages, tenant, session_id)
                except (SealKeyUnknown, SealBroken):  # under a key that was given up since: the truth was put right
                    self._suspect(key)
        sure = tokens.current()
        stored = await self._truth.latest(
            tenant, session_id, limit=self._knobs.context_messages, characters=self._knobs.context_characters
        )
        await self._push_cache(key, stored, is_fill=True, token=sure)
        return self._shown(stored, tenant, session_id)

    async def append(
        self,
        tenant: str,
        session_id: str,
        messages: Sequence[Message],
        *,
        task_id: UUID | None,
        first_ordinal: int = 0,
    ) -> None:
        """Add messages to a session, once per (task_id, ordinal): a step that runs again adds nothing.

        Args:
            tenant: Whose session it is.
            session_id: The session.
            messages: In order; the n-th gets ordinal `first_ordinal + n`. Messages without text and those of role
                `tool` are skipped: a context with half of a tool exchange is refused by endpoints.
            task_id: The task that says them; None for messages of no task, which are added every time.
            first_ordinal: The first message's number within its task.

        Raises: DatabaseUnavailable; then nothing may be assumed, and the same call may be made again. ShardMoved.
        """
        numbered = [
            (first_ordinal + position, Message(message.role, self._sealed(message.content, tenant, session_id)))
            for position, message in enumerate(messages)
            if message.content and message.role != "tool"
        ]
        if not numbered:
            return
        key = session_key(tenant, session_id)
        try:
            new = await self._truth.append(tenant, session_id, numbered, task_id=task_id)
            if len(new) < len(numbered):
                # An earlier run stored some and may have died before the cache heard of it.
                self._suspect(key)
            await self._push_cache(key, [self._cut(one) for one in new], is_fill=False, token=tokens.current())
        except BaseException:
            self._suspect(key)  # cancelled or cut off: the truth may hold what the cache does not
            raise

    def _sealed(self, content: str, tenant: str, session_id: str) -> str:
        text = clean_text(content)
        return text if self._seal is None else self._seal.seal(text, tenant=tenant, place=session_id)

    def _shown(self, stored: Sequence[StoredMessage], tenant: str, session_id: str) -> tuple[Message, ...]:
        by_id = {one.id: one.message for one in stored}  # a re-wrapped message may be cached in both its forms
        said = list(by_id.values())
        if self._seal is not None:
            said = [replace(one, content=self._seal.open(one.content, tenant=tenant, place=session_id)) for one in said]
        return bounded(said, limit=self._knobs.context_messages, characters=self._knobs.context_characters)

    async def _read_cache(self, key: str) -> Cached | None:
        """What is cached; None while the cache is away."""
        if self._clock.monotonic() < self._resting_until:
            return None
        try:
            await self._drop_suspects()
            return await self._cache.read(key)
        except SessionUnavailable as error:
            self._rest(error)
            return None

    async def _push_cache(
        self, key: str, stored: Sequence[StoredMessage], *, is_fill: bool, token: CausalToken | None
    ) -> None:
        if self._clock.monotonic() < self._resting_until:
            self._suspect(key)
            return
        try:
            await self._drop_suspects()
            await self._cache.push(key, stored, is_fill=is_fill, token=token)
        except SessionUnavailable as error:
            self._suspect(key)
            self._rest(error)

    def _cut(self, one: StoredMessage) -> StoredMessage:
        """A context never shows more of one message, so the cache does not hold more; a sealed one only opens whole."""
        if one.message.content.startswith(SEALED_TEXT):
            return one
        content = one.message.content[: self._knobs.context_characters]
        return replace(one, message=replace(one.message, content=content))

    def _suspect(self, key: str) -> None:
        """Remember that an entry may miss a message: it is dropped before the cache is used again."""
        self._doubts += 1
        self._suspects[key] = self._doubts
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.pop(next(iter(self._suspects)))

    async def _drop_suspects(self) -> None:
        if not self._suspects:
            return
        dropping = dict(self._suspects)
        await self._cache.drop(dropping)
        for key, doubt in dropping.items():
            if self._suspects.get(key) == doubt:  # a newer doubt arose while the drop was under way
                del self._suspects[key]

    def _rest(self, error: SessionUnavailable) -> None:
        now = self._clock.monotonic()
        self._resting_until = now + self._knobs.rest_s
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.warning("memory.cache_unavailable", cause=error.message, rest_s=self._knobs.rest_s, using="postgresql")
