"""Ask in words, get passages: the embedder and the vector store as one."""

from collections.abc import Sequence

from shared.errors import BadInput
from shared.retrieval.ports import MAX_TEXT_BYTES, Document, EmbeddingPort, Passage, VectorPort


class Retriever:
    """What agents search with."""

    def __init__(self, *, embedding: EmbeddingPort, vectors: VectorPort) -> None:
        self._embedding = embedding
        self._vectors = vectors

    async def search(self, text: str, *, k: int = 4, tenant: str | None = None) -> tuple[Passage, ...]:
        """The `k` passages nearest to a question, best first, among the tenant's own and everyone's.

        Raises: VectorsUnavailable.
        """
        return await self._vectors.search(await self._embedding.embed_query(text), k=k, tenant=tenant)

    async def add(self, documents: Sequence[Document]) -> int:
        """Store documents and say how many were new or changed; only those are embedded and written.

        Raises: VectorsUnavailable; BadInput for a text over 60 000 bytes: split it into passages.
        """
        for document in documents:
            if len(document.text.encode()) > MAX_TEXT_BYTES:
                raise BadInput(f"document {document.id!r} is over {MAX_TEXT_BYTES} bytes: split it into passages")
        known = await self._vectors.texts(documents)
        changed = [document for document in documents if known.get(document) != document.text]
        if changed:
            vectors = await self._embedding.embed_passages([document.text for document in changed])
            await self._vectors.upsert(list(zip(changed, vectors, strict=True)))
        return len(changed)
