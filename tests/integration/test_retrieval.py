"""Retrieval over a real vector server and real embeddings."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
import pytest_asyncio

from shared.errors import Misconfigured, VectorsUnavailable
from shared.retrieval.corpus.loading import corpus_documents, ensure_corpus
from shared.retrieval.embedding import E5Embedding
from shared.retrieval.knobs import RetrievalKnobs
from shared.retrieval.milvus import MilvusVectors
from shared.retrieval.retriever import Retriever
from tests.contract.vector_suite import DIMENSIONS, VectorSuite, document, towards
from workers.ops.background import BackgroundSupervisor

PATIENT_S = 30.0


@pytest.fixture
def knobs(vectors: str) -> RetrievalKnobs:
    """Patient: a server that answers late on a busy machine is not away."""
    return RetrievalKnobs(
        uri=vectors, collection=f"test_{uuid4().hex}", timeout_s=PATIENT_S, setup_timeout_s=60.0, rest_s=0.2
    )


@pytest_asyncio.fixture
async def port(knobs: RetrievalKnobs) -> AsyncIterator[MilvusVectors]:
    port = MilvusVectors(knobs, dimensions=DIMENSIONS)
    yield port
    await port.aclose()


@pytest_asyncio.fixture
async def hasty(port: MilvusVectors, knobs: RetrievalKnobs) -> AsyncIterator[MilvusVectors]:
    """One with the limits of every day, that has found a document."""
    await port.upsert([(document("a"), towards(0))])
    hasty = MilvusVectors(replace(knobs, timeout_s=RetrievalKnobs().timeout_s), dimensions=DIMENSIONS)
    await finds(hasty)
    yield hasty
    await hasty.aclose()


async def finds(port: MilvusVectors) -> None:
    """Return once the document is found."""
    async with asyncio.timeout(60):
        while True:
            try:
                assert [one.id for one in await port.search(towards(0), k=1)] == ["a"]
                return
            except VectorsUnavailable:
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def retriever(knobs: RetrievalKnobs) -> AsyncIterator[Retriever]:
    embedding = E5Embedding()
    vectors = MilvusVectors(knobs, dimensions=embedding.dimensions)
    yield Retriever(embedding=embedding, vectors=vectors)
    await vectors.aclose()
    embedding.close()


class TestMilvusVectors(VectorSuite):
    """The suite, over the embedded server."""


async def test_corpus_is_loaded_once_and_answers_in_several_languages(retriever: Retriever) -> None:
    assert await ensure_corpus(retriever) == len(corpus_documents())
    assert await ensure_corpus(retriever) == 0
    for question, answer in {
        "What happens to a task when its worker dies?": "fleet/when-a-worker-crashes",
        "How do I add capacity?": "fleet/how-scaling-works",
        "系统降级有哪些级别?": "fleet/degradation-levels",
    }.items():
        assert (await retriever.search(question, k=1, tenant="anyone"))[0].id == answer


async def test_two_processes_may_create_the_collection_at_the_same_time(knobs: RetrievalKnobs) -> None:
    ports = [MilvusVectors(knobs, dimensions=DIMENSIONS) for _ in range(3)]
    for port in ports:
        await port.upsert([(document("a"), towards(0))])
        assert len(await port.search(towards(0), k=5)) == 1
    for port in ports:
        await port.aclose()


async def test_collection_of_another_embedder_is_refused_by_name(port: MilvusVectors, knobs: RetrievalKnobs) -> None:
    await port.upsert([(document("a"), towards(0))])
    other = MilvusVectors(knobs, dimensions=16)
    with pytest.raises(Misconfigured, match="FLEET_VECTORS_COLLECTION"):
        await other.search((0.0,) * 16, k=1)
    await other.aclose()


async def test_server_that_is_not_there_is_unavailable_and_asked_again_only_after_a_rest() -> None:
    port = MilvusVectors(RetrievalKnobs(uri="http://127.0.0.1:1", rest_s=60.0), dimensions=DIMENSIONS)
    for _ in range(20):
        with pytest.raises(VectorsUnavailable):
            await port.search(towards(0), k=1)
    with pytest.raises(VectorsUnavailable, match="just now"):
        await port.search(towards(0), k=1)
    await port.aclose()


async def test_server_that_died_and_came_back_is_found_again_with_its_documents(
    hasty: MilvusVectors, servers: BackgroundSupervisor
) -> None:
    servers.suspend("vectors")
    servers.kill("vectors")
    with pytest.raises(VectorsUnavailable):
        await hasty.search(towards(0), k=1)
    servers.resume("vectors")
    servers.wait_ready("vectors")
    await finds(hasty)


async def test_server_that_hangs_ends_the_search_in_time(hasty: MilvusVectors, servers: BackgroundSupervisor) -> None:
    servers.freeze("vectors")
    try:
        async with asyncio.timeout(60):
            with pytest.raises(VectorsUnavailable):
                await hasty.search(towards(0), k=1)
    finally:
        servers.thaw("vectors")
