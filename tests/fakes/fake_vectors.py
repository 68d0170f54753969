"""A vector store in a dict."""

from collections.abc import Sequence

from shared.errors import VectorsUnavailable
from shared.retrieval.ports import Document, Passage, Vector


class FakeVectors:
    """A `VectorPort` that compares with everything it has."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str | None, str], tuple[Document, Vector]] = {}
        self.is_down = False

    async def upsert(self, documents: Sequence[tuple[Document, Vector]]) -> None:
        """Replace by tenant and id."""
        self._check()
        for document, vector in documents:
            self.rows[document.tenant, document.id] = (document, vector)

    async def search(self, vector: Vector, *, k: int, tenant: str | None = None) -> tuple[Passage, ...]:
        """All of the tenant's and everyone's, by cosine."""
        self._check()
        found = [
            Passage(document.id, document.text, round(sum(map(float.__mul__, vector, stored)), 6), document.source)
            for document, stored in self.rows.values()
            if document.tenant is None or document.tenant == tenant
        ]
        return tuple(sorted(found, key=lambda passage: -passage.score)[:k])

    async def texts(self, documents: Sequence[Document]) -> dict[Document, str]:
        """What is stored under the same tenant and id."""
        self._check()
        stored = {document: self.rows.get((document.tenant, document.id)) for document in documents}
        return {document: row[0].text for document, row in stored.items() if row is not None}

    def _check(self) -> None:
        if self.is_down:
            raise VectorsUnavailable("the fake is down")
