"""The two edges of session memory: where the truth lives and where the copy lives."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from shared.db.tokens import CausalToken
from shared.llm.messages import Message


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message and its place in the truth: ids grow, and their order is the order of the conversation."""

    id: int
    message: Message


class Seal(Protocol):
    """Keeps what is said from those who can read the stores."""

    def seal(self, text: str, *, tenant: str, place: str) -> str:
        """A text as it may be stored; the same text twice is stored differently."""

    def open(self, text: str, *, tenant: str, place: str) -> str:
        """A text as it was said.

        Raises: SealKeyUnknown; SealBroken.
        """


SEALED_TEXT = '{"$sealed"'
"""How a sealed text begins: it is kept whole, for a part of it says nothing."""


class SessionTruth(Protocol):
    """The lasting record of every session."""

    async def append(
        self, tenant: str, session_id: str, numbered: Sequence[tuple[int, Message]], *, task_id: UUID | None
    ) -> tuple[StoredMessage, ...]:
        """Store messages by (task_id, ordinal) and return those that were new.

        Raises: DatabaseUnavailable.
        """

    async def check_here(self, tenant: str, session_id: str) -> None:
        """Whether the session is on this shard.

        Raises: ShardMoved; DatabaseUnavailable.
        """

    async def latest(self, tenant: str, session_id: str, *, limit: int, characters: int) -> tuple[StoredMessage, ...]:
        """The newest `limit` messages, oldest first, each cut to its first `characters` unless it is sealed.

        At least what the work under way has written and seen; without such a token, all that there is.

        Raises: DatabaseUnavailable; ReplicaStale.
        """


@dataclass(frozen=True, slots=True)
class Cached:
    """What the cache knows of a session."""

    messages: tuple[StoredMessage, ...] | None = None
    """Oldest first; None unless the entry is known to be complete."""
    token: CausalToken | None = None
    """What a read of the truth must not miss to have all messages; None: nobody knows."""


class SessionCache(Protocol):
    """A copy of recent messages, one entry per session; may forget everything at any time."""

    async def read(self, key: str) -> Cached:
        """What is cached.

        Raises: SessionUnavailable.
        """

    async def push(
        self, key: str, stored: Sequence[StoredMessage], *, is_fill: bool, token: CausalToken | None = None
    ) -> None:
        """Merge messages into the entry, by id, and the token into its token, by max.

        A fill declares the entry complete instead, and restarts its time to live: unless messages have been pushed
        that a read as fresh as `token` may have missed.

        Args:
            token: Where the messages were written, None: nobody knows; of a fill what the read was sure to see, None:
                everything.

        Raises: SessionUnavailable.
        """

    async def drop(self, keys: Collection[str]) -> None:
        """Forget entries and their tokens.

        Raises: SessionUnavailable.
        """
