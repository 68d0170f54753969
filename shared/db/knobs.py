"""What can be tuned about the database."""

from dataclasses import dataclass
from typing import Literal

SCHEME = "postgresql+psycopg://"


@dataclass(frozen=True, slots=True)
class DbKnobs:
    """FLEET_DB_*."""

    url: str = "postgresql+psycopg://fleet@127.0.0.1:5432/fleet"
    """A node of the cluster, as an SQLAlchemy URL with the psycopg driver: the primary, until somebody has looked."""
    replicas: str = ""
    """The other nodes' URLs, separated by commas. Which of all is the primary is looked up, never configured."""
    config: str = ""
    """A YAML file with `primary`, `replicas` and `routing_rules`, for weights and pool sizes per node; hosts and ports
    come from there, user, database and everything else from `url`."""
    shards: str = ""
    """A YAML file with every shard's nodes and broker, for a fleet of several clusters; see `shards_file`."""
    shard: str = ""
    """The shard to which this process belongs; empty: the first one of the file."""
    pool_size: int = 5
    """Connections kept per process and node; group commit makes few of them enough."""
    pool_overflow_ratio: float = 1.0
    """How many more are opened at need, as a share of those kept: 1 doubles them, 0 opens none."""
    pool_timeout_s: float = 3.0
    """Seconds a unit of work waits for a connection while all are in use, before it fails as PoolExhausted."""
    pool_recycle_s: float = 3600.0
    """Seconds after which a pooled connection is replaced: its memory and its server-side caches go with it."""
    pooler: Literal["none", "pgbouncer"] = "none"
    """`pgbouncer`: the URLs lead to PgBouncer in transaction mode. Nothing is then set on connections (limits belong
    into the role's settings), statements are not prepared, and read-only transactions say so one by one."""
    direct_url: str = ""
    """With a pooler: the same nodes without it, in the order of `url` and `replicas`, separated by commas. Roles are
    looked up there, and what needs a connection of its own (the leader's lock, the group commit) goes there."""
    connect_timeout_s: int = 3
    """Seconds until a connection attempt is given up (libpq treats 1 as 2)."""
    statement_timeout_s: float = 15.0
    """Seconds until the server cancels a statement: nothing waits without a limit."""
    idle_in_transaction_s: float = 15.0
    """Seconds without a statement after which the server ends a transaction: a process that stands still in one would
    keep the rows it has changed locked for as long, and nobody could take its runs over."""
    answer_timeout_s: float = 2.0
    """Seconds that a server may be silent when it has nothing to compute (a BEGIN, a look at a node, and a statement
    beyond its own limit) before its connection is cut: a stopped backend keeps its connection open for ever."""
    look_every_s: float = 0.2
    """Seconds between two looks at a node, give or take a half: how old a replica's known position can be."""
    max_lag_s: float = 10.0
    """A replica further behind is not read from; it returns below half of that."""
    return_after_s: float = 1.0
    """Seconds for which a replica that was taken out must be well before it is read from again."""
    causal_wait_s: float = 0.05
    """Seconds a causal read waits for a replica to reach its token before it goes to the primary."""
    overflow: int = 3
    """Reads that this process sends to the primary at the same time because no replica will do; half of them for
    reads that take any age."""
    overflow_wait_s: float = 0.5
    """Seconds a causal read waits for such a place before it fails as ReplicaStale; other reads do not wait."""

    def __post_init__(self) -> None:
        if not self.url.startswith(SCHEME):
            raise ValueError(f"url must start with {SCHEME}")
        for name, urls in (("replicas", self.replica_urls), ("direct_url", self.direct_urls)):
            if not all(one.startswith(SCHEME) for one in urls):
                raise ValueError(f"{name} must each start with {SCHEME}")
        if self.pool_size < 1 or self.connect_timeout_s < 1 or self.statement_timeout_s <= 0:
            raise ValueError("pool_size, connect_timeout_s and statement_timeout_s must be positive")
        for name in (
            "pool_recycle_s", "pool_timeout_s", "answer_timeout_s", "look_every_s", "max_lag_s", "overflow",
            "idle_in_transaction_s",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        for name in ("pool_overflow_ratio", "return_after_s", "causal_wait_s", "overflow_wait_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.replicas and self.config:
            raise ValueError("replicas and config must not both be given: the file names the replicas")
        if self.shards and (self.replicas or self.config):
            raise ValueError("shards names every node: replicas and config must not be given beside it")
        if self.shard and not self.shards:
            raise ValueError("shard needs shards, the file that says where it is")

    @property
    def replica_urls(self) -> tuple[str, ...]:
        """The URLs in `replicas`."""
        return _listed(self.replicas)

    @property
    def direct_urls(self) -> tuple[str, ...]:
        """The URLs in `direct_url`."""
        return _listed(self.direct_url)


def _listed(urls: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in urls.split(",") if one.strip())
