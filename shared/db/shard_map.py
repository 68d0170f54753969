"""Which shard each bucket is on: pure, and merged from what the shards themselves say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from shared.contracts import DEFAULT_TENANT, bucket_in, bucket_of
from shared.errors import ShardMoved

State = Literal["open", "moving", "moved", "arriving"]
ShardKey = UUID | str | tuple[str, str]
"""A task's id, a session of the default tenant, or (tenant, session)."""


@dataclass(frozen=True, slots=True)
class BucketRow:
    """What one shard says of one bucket; see `tables.shard_buckets`."""

    bucket: int
    epoch: int
    state: State
    shard: str


@dataclass(frozen=True, slots=True)
class Home:
    """Where a bucket is; `epoch` counts its moves."""

    shard: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Every bucket's home: the first shard's, until it was moved."""

    first: str
    moved: Mapping[int, Home] = field(default_factory=dict)

    def home_of(self, bucket: int) -> Home:
        """Where it is, as far as is known here."""
        return self.moved.get(bucket) or Home(self.first)

    def merged(self, rows: Iterable[BucketRow]) -> "ShardMap":
        """The map with what a shard says: of two words about a bucket, the one of the greater epoch is right."""
        homes = dict(self.moved)
        for row in rows:
            known = homes.get(row.bucket)
            if known is None or (row.epoch, row.shard) > (known.epoch, known.shard):
                homes[row.bucket] = Home(row.shard, row.epoch)
        return ShardMap(self.first, homes)


def bucket_for(key: ShardKey) -> int:
    """The bucket that a unit of work with this key is for."""
    if isinstance(key, UUID):
        return bucket_in(key)
    tenant, session = (DEFAULT_TENANT, key) if isinstance(key, str) else key
    return bucket_of(tenant, session)


def check_here(state: str | None, *, bucket: int, here: str, home: Home) -> None:
    """Whether a shard has the bucket, by its own word.

    Args:
        state: Of its row; None when no bucket was ever moved from or to it.

    Raises: ShardMoved.
    """
    is_here = state in ("open", "moving") if state is not None else home.epoch == 0
    if not is_here:
        raise ShardMoved(
            f"bucket {bucket} is not on shard {here} (any more, or not yet): look again where it is, and try there",
            retry_after_s=0.1, bucket=bucket, shard=here,
        )  # fmt: skip
