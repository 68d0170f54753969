"""The two outside edges of retrieval and the values that cross them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

Vector = tuple[float, ...]
MAX_TEXT_BYTES = 60_000


@dataclass(frozen=True, slots=True)
class Document:
    """A passage to be found; `id` is unique within its tenant, and tenant None means that everyone may find it."""

    id: str
    text: str
    source: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that was found; `score` is the cosine similarity, at most 1."""

    id: str
    text: str
    score: float
    source: str

    def to_json(self) -> dict[str, Any]:
        """As a plain dict, for the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_json` gave."""
        return cls(data["id"], data["text"], data["score"], data["source"])


class EmbeddingPort(Protocol):
    """Anything that turns text into vectors of one fixed length; questions and passages are embedded differently."""

    @property
    def dimensions(self) -> int:
        """Length of every vector."""

    async def embed_query(self, text: str) -> Vector:
        """The vector of a question, of length 1."""

    async def embed_passages(self, texts: Sequence[str]) -> tuple[Vector, ...]:
        """One vector of length 1 for each text."""


class VectorPort(Protocol):
    """Anything that stores vectors and finds the nearest.

    Every method ends within a time limit and raises VectorsUnavailable.
    """

    async def upsert(self, documents: Sequence[tuple[Document, Vector]]) -> None:
        """Store documents; one of the same tenant and id is replaced."""

    async def search(self, vector: Vector, *, k: int, tenant: str | None = None) -> tuple[Passage, ...]:
        """The `k` nearest of the tenant's and everyone's documents, best first."""

    async def texts(self, documents: Sequence[Document]) -> dict[Document, str]:
        """The stored texts of those documents that exist (matched by tenant and id), to see which have changed."""
