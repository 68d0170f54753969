"""The retriever and the corpus over fakes: only what changed is embedded and written."""

import pytest

from shared.errors import BadInput, VectorsUnavailable
from shared.retrieval.corpus.loading import corpus_documents, ensure_corpus
from shared.retrieval.ports import Document, Passage
from shared.retrieval.retriever import Retriever
from tests.fakes.fake_embedding import FakeEmbedding
from tests.fakes.fake_vectors import FakeVectors


@pytest.fixture
def embedding() -> FakeEmbedding:
    return FakeEmbedding()


@pytest.fixture
def vectors() -> FakeVectors:
    return FakeVectors()


@pytest.fixture
def retriever(embedding: FakeEmbedding, vectors: FakeVectors) -> Retriever:
    return Retriever(embedding=embedding, vectors=vectors)


async def test_only_new_and_changed_documents_are_embedded(retriever: Retriever, embedding: FakeEmbedding) -> None:
    first, second = Document("a", "one", "s"), Document("b", "two", "s")
    assert await retriever.add([first, second]) == 2
    assert await retriever.add([first, Document("b", "two, changed", "s"), Document("a", "one", "s", "acme")]) == 2
    assert embedding.embedded == ["one", "two", "two, changed", "one"]
    assert await retriever.add([]) == 0


async def test_search_finds_the_passage_that_shares_the_words(retriever: Retriever) -> None:
    await ensure_corpus(retriever)
    assert (await retriever.search("Degradation levels L0 L1", k=1))[0].id == "fleet/degradation-levels"


async def test_corpus_is_loaded_once(retriever: Retriever) -> None:
    assert await ensure_corpus(retriever) == len(corpus_documents()) >= 8
    assert await ensure_corpus(retriever) == 0


def test_every_passage_of_the_corpus_is_a_short_english_paragraph_for_everyone() -> None:
    for page in corpus_documents():
        assert 200 < len(page.text) < 700 and "\n" not in page.text and page.text.isascii(), page.id
        assert page.tenant is None and page.id == f"fleet/{page.source.removeprefix('corpus/').removesuffix('.md')}"


async def test_text_that_is_too_long_is_refused_by_its_id(retriever: Retriever) -> None:
    with pytest.raises(BadInput, match="huge"):
        await retriever.add([Document("huge", "é" * 40_000, "s")])


async def test_a_store_that_is_away_is_said_by_its_error(retriever: Retriever, vectors: FakeVectors) -> None:
    vectors.is_down = True
    with pytest.raises(VectorsUnavailable):
        await retriever.search("anything")


def test_a_passage_survives_the_journal() -> None:
    passage = Passage("i", "t", 0.5, "s")
    assert Passage.from_json(passage.to_json()) == passage
