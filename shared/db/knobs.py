"""What can be tuned about the database."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DbKnobs:
    """FLEET_DB_*."""

    url: str = "postgresql+psycopg://fleet@127.0.0.1:5432/fleet"
    """The primary, as an SQLAlchemy URL with the psycopg driver."""
    pool_size: int = 5
    """Connections kept per process; group commit makes few of them enough."""
    connect_timeout_s: int = 3
    """Seconds until a connection attempt is given up (libpq treats 1 as 2)."""
    statement_timeout_s: float = 15.0
    """Seconds until the server cancels a statement: nothing waits without a limit."""

    def __post_init__(self) -> None:
        if not self.url.startswith("postgresql+psycopg://"):
            raise ValueError("url must start with postgresql+psycopg://")
        if self.pool_size < 1 or self.connect_timeout_s < 1 or self.statement_timeout_s <= 0:
            raise ValueError("pool_size, connect_timeout_s and statement_timeout_s must be positive")
