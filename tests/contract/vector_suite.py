"""What a vector store promises, whatever it is."""

import asyncio
import math
from uuid import uuid4

from shared.retrieval.ports import Document, Vector, VectorPort

DIMENSIONS = 8


def towards(*axes: int) -> Vector:
    """A vector of length 1 between some axes."""
    return tuple(1 / math.sqrt(len(axes)) if axis in axes else 0.0 for axis in range(DIMENSIONS))


def document(name: str, tenant: str | None = None, text: str = "") -> Document:
    """A document with a text and a source that say its name."""
    return Document(id=name, text=text or f"text of {name}", source=f"source of {name}", tenant=tenant)


class VectorSuite:
    """Subclass it with a `port` fixture: an empty `VectorPort` of `DIMENSIONS`."""

    async def test_an_empty_store_finds_nothing(self, port: VectorPort) -> None:
        assert await port.search(towards(0), k=3) == ()
        assert await port.texts([document("a")]) == {}
        await port.upsert([])

    async def test_the_nearest_come_first_with_their_cosine(self, port: VectorPort) -> None:
        await port.upsert([(document("a"), towards(0)), (document("b"), towards(1)), (document("c"), towards(0, 1))])
        found = await port.search(towards(0), k=2)
        assert [(one.id, one.text, one.source) for one in found] == [
            ("a", "text of a", "source of a"),
            ("c", "text of c", "source of c"),
        ]
        assert math.isclose(found[0].score, 1.0, abs_tol=1e-3)
        assert math.isclose(found[1].score, math.sqrt(0.5), abs_tol=1e-3)

    async def test_a_document_stored_again_is_replaced(self, port: VectorPort) -> None:
        await port.upsert([(document("a"), towards(0))])
        await port.upsert([(document("a", text="newer"), towards(1))])
        found = await port.search(towards(1), k=5)
        assert [(one.id, one.text) for one in found] == [("a", "newer")]
        assert await port.texts([document("a"), document("b")]) == {document("a"): "newer"}

    async def test_a_tenant_finds_its_own_and_everyones_and_no_others(self, port: VectorPort) -> None:
        name = uuid4().hex
        for tenant in (None, "acme", "umbrella", '"] or scope != "'):
            await port.upsert([(document(name, tenant, text=f"of {tenant}"), towards(2))])
        for tenant in ("acme", "umbrella", '"] or scope != "'):
            found = await port.search(towards(2), k=10, tenant=tenant)
            assert sorted(one.text for one in found) == sorted(["of None", f"of {tenant}"])
        assert [one.text for one in await port.search(towards(2), k=10)] == ["of None"]
        assert [one.text for one in await port.search(towards(2), k=10, tenant="new")] == ["of None"]

    async def test_odd_characters_come_back_as_they_were(self, port: VectorPort) -> None:
        odd = document("日本 'q\" \\ %", text='Zeile 1\nZeile "2" — 你好')
        await port.upsert([(odd, towards(3))])
        assert (await port.search(towards(3), k=1))[0].text == odd.text
        assert await port.texts([odd]) == {odd: odd.text}

    async def test_many_searches_at_once_are_all_answered(self, port: VectorPort) -> None:
        await port.upsert([(document("a"), towards(0))])
        found = await asyncio.gather(*[port.search(towards(0), k=1) for _ in range(100)])
        assert all(one[0].id == "a" for one in found)
