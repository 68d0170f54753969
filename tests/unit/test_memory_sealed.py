"""A conversation under seal: stores hold nothing to read, and giving a key up shuts out nobody who has the new one."""

import os
from dataclasses import replace

import pytest

from shared.errors import SealBroken, SealKeyUnknown
from shared.ledger.sealed_text import MARK, SealedText
from shared.ledger.vault import Vault
from shared.ledger.vault_knobs import MasterKey
from shared.llm.messages import Message
from shared.memory.knobs import MemoryKnobs
from shared.memory.ports import SEALED_TEXT, Cached
from shared.memory.session import SessionMemory
from tests.fakes.fake_sessions import FakeCache, FakeTruth

OLD, NEW = MasterKey("old", os.urandom(32)), MasterKey("new", os.urandom(32))
HERE: dict[str, str] = {"tenant": "acme", "place": "s"}
LONG = "x" * 500


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def truth() -> FakeTruth:
    return FakeTruth()


def sealed(*keys: MasterKey) -> SealedText:
    return SealedText(Vault(keys), kind="message")


def memory_of(truth: FakeTruth, cache: FakeCache, *keys: MasterKey) -> SessionMemory:
    return SessionMemory(truth, cache, knobs=MemoryKnobs(context_characters=600), seal=sealed(*keys))


async def said(memory: SessionMemory) -> list[str]:
    return [message.content for message in await memory.context("acme", "s")]


async def tell(memory: SessionMemory, *texts: str) -> None:
    await memory.append("acme", "s", [Message("user", text) for text in texts], task_id=None)


async def test_neither_truth_nor_cache_holds_a_word_and_both_give_it_back(truth: FakeTruth, cache: FakeCache) -> None:
    memory = memory_of(truth, cache, OLD)
    await tell(memory, "Grace", LONG)
    for _ in range(2):  # from the truth, then from the cache
        assert await said(memory) == ["Grace", LONG]
    assert truth.reads == 1
    kept = [row.message.content for _, _, row in truth.rows]
    cached = [one.message.content for entry in cache.entries.values() for one in entry.values()]
    assert kept == cached and all(text.startswith(SEALED_TEXT) for text in kept), "the very same seal in both"
    assert not any("Grace" in text for text in kept)


async def test_what_was_said_before_there_were_keys_stays_readable(truth: FakeTruth, cache: FakeCache) -> None:
    await tell(memory_of(truth, cache), "before")
    memory = memory_of(truth, cache, OLD)
    await tell(memory, "after")
    assert await said(memory) == ["before", "after"]
    with pytest.raises(SealKeyUnknown):
        await said(memory_of(truth, cache))


async def test_an_entry_under_a_key_that_was_given_up_is_filled_anew_from_the_truth(
    truth: FakeTruth, cache: FakeCache
) -> None:
    await tell(before := memory_of(truth, cache, OLD), "hello")
    assert await said(before) == ["hello"]
    fresh = sealed(NEW).seal("hello", **HERE)  # as a rotation leaves it
    truth.rows = [
        (tenant, session, replace(row, message=Message("user", fresh))) for tenant, session, row in truth.rows
    ]
    after = memory_of(truth, cache, NEW)
    for _ in range(2):
        assert await said(after) == ["hello"]
    assert truth.reads == 2, "once by each"


async def test_a_message_that_is_cached_in_two_forms_is_given_once(truth: FakeTruth, cache: FakeCache) -> None:
    memory = memory_of(truth, cache, OLD)
    await tell(memory, "hello")

    class TwoForms(FakeCache):
        async def read(self, key: str) -> Cached:
            one = truth.rows[0][2]
            return Cached((one, replace(one, message=Message("user", sealed(OLD).seal("hello", **HERE)))))

    assert await said(memory_of(truth, TwoForms(), OLD)) == ["hello"]


def test_a_message_opens_in_its_own_session_only() -> None:
    text = sealed(OLD).seal("Grace", **HERE)
    assert sealed(OLD).open(text, **HERE) == "Grace"
    for other in ({"tenant": "acme", "place": "t"}, {"tenant": 'acme", "s', "place": "s"}):
        with pytest.raises(SealBroken):
            sealed(OLD).open(text, **other)


@pytest.mark.parametrize("text", ['{"$sealed":{}}', '{"$sealed"', '{"$sealed": 1, "more": 2}', MARK * 3])
def test_words_in_the_sealed_form_are_words_with_and_without_keys(text: str) -> None:
    assert sealed(OLD).open(sealed(OLD).seal(text, **HERE), **HERE) == text
    assert sealed().open(sealed().seal(text, **HERE), **HERE).strip() == text


def test_stores_and_seal_mean_the_same_mark() -> None:
    assert MARK == SEALED_TEXT
