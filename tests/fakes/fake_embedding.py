"""Embeddings without a model: texts that share words are near each other."""

import math
import zlib
from collections.abc import Sequence

from shared.retrieval.ports import Vector


class FakeEmbedding:
    """An `EmbeddingPort`: each word turns one dimension, chosen by a checksum."""

    dimensions = 384

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def embed_query(self, text: str) -> Vector:
        """The vector of a text's words."""
        return (await self.embed_passages([text]))[0]

    async def embed_passages(self, texts: Sequence[str]) -> tuple[Vector, ...]:
        """The vectors of several texts' words."""
        self.embedded += texts
        return tuple(self._vector(text) for text in texts)

    def _vector(self, text: str) -> Vector:
        counts = [0.0] * self.dimensions
        for word in text.lower().split():
            counts[zlib.crc32(word.strip(".,?!:;").encode("utf-8", "replace")) % self.dimensions] += 1
        length = math.hypot(*counts) or 1.0
        return tuple(count / length for count in counts)
