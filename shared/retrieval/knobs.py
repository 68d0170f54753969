"""What can be tuned about retrieval."""

from dataclasses import dataclass, field

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class RetrievalKnobs:
    """FLEET_VECTORS_*."""

    uri: str = "http://127.0.0.1:19530"
    """Milvus, or a `milvus-lite server`: host and port, as http:// or https:// (the protocol inside is gRPC)."""

    token: SecretStr = field(default_factory=lambda: SecretStr(""))
    """`user:password` or an API key of a Milvus that wants one; printed nowhere."""

    collection: str = "fleet_passages"
    """The collection; created when missing. Another embedder needs another collection."""

    timeout_s: float = 2.0
    """Seconds for one search or write. A search takes milliseconds; no passages are better than a late answer."""

    setup_timeout_s: float = 15.0
    """Seconds for the first call, which connects and may create, index and load the collection."""

    rest_s: float = 5.0
    """Seconds for which no connection is tried again after one failed: a thousand runs must not each wait for it."""

    threads: int = 4
    """Calls to the vector store at the same time per process; the client blocks, so each takes a thread."""

    def __post_init__(self) -> None:
        if not self.uri.startswith(("http://", "https://", "tcp://")):
            raise ValueError("uri must start with http:// or https://: a file would be opened by every process at once")
        if min(self.timeout_s, self.setup_timeout_s, self.threads) <= 0:
            raise ValueError("timeout_s, setup_timeout_s and threads must be positive")
