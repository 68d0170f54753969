"""The catalogue: a producer's mistake is told at once, with the name of the field."""

import asyncio
from typing import Any, cast

import pytest

from shared.db.database import Database
from shared.errors import BadInput, DatabaseUnavailable, PromptTooLong, UnknownAgent
from shared.ledger import catalogue as room
from shared.ledger.catalogue import FRESH_S, Catalogue

ECHO = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "deep": {"type": "array", "items": {"type": "integer"}}},
    "required": ["text"],
    "additionalProperties": False,
}


class Ledger:
    """What workers have offered, and how often it was asked for."""

    def __init__(self) -> None:
        self.schemas: dict[str, dict[str, Any]] = {"echo": ECHO}
        self.reads = 0
        self.is_down = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def offered(self, database: Database) -> dict[str, dict[str, Any]]:
        self.reads += 1
        await asyncio.sleep(0)
        await self.answers.wait()
        if self.is_down:
            raise DatabaseUnavailable("down")
        return dict(self.schemas)


class Hands:
    """A clock that the test moves."""

    seconds = 1000.0

    def monotonic(self) -> float:
        self.seconds += 1e-6
        return self.seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(room, "time", hands)
    return hands


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, hands: Hands) -> Ledger:
    ledger = Ledger()
    monkeypatch.setattr(room, "offered", ledger.offered)
    return ledger


@pytest.fixture
def catalogue(ledger: Ledger) -> Catalogue:
    return Catalogue(cast(Database, None))


async def test_input_that_fits_passes(catalogue: Catalogue) -> None:
    await catalogue.check("echo", {"text": "hi", "deep": [1, 2]})


@pytest.mark.parametrize(
    ("given", "told", "field"),
    [
        ({"text": 5}, "field 'text' of agent 'echo': 5 is not of type 'string'", "text"),
        ({"text": "", "deep": [1, "x"]}, "field 'deep.1' of agent 'echo': 'x' is not of type 'integer'", "deep.1"),
        ({}, "the input of agent 'echo': 'text' is a required property", None),
        ({"text": "", "txet": 1}, "the input of agent 'echo': Additional properties are not allowed ('txet' was", None),
    ],
)
async def test_input_that_does_not_fit_is_refused_by_its_field(
    catalogue: Catalogue, given: dict[str, Any], told: str, field: str | None
) -> None:
    with pytest.raises(BadInput) as caught:
        await catalogue.check("echo", given)
    assert caught.value.message.startswith(told)
    assert caught.value.context.get("field") == field


async def test_an_agent_nobody_offers_is_refused_and_the_known_ones_are_named(
    catalogue: Catalogue, ledger: Ledger
) -> None:
    ledger.schemas["chat"] = {}
    with pytest.raises(UnknownAgent, match=r"^no worker offers an agent 'ehco'; there are: chat, echo$"):
        await catalogue.check("ehco", {})


async def test_the_catalogue_is_read_once_and_again_when_it_is_old(
    catalogue: Catalogue, ledger: Ledger, hands: Hands
) -> None:
    for _ in range(5):
        await catalogue.check("echo", {"text": "hi"})
    assert ledger.reads == 1
    hands.seconds += FRESH_S + 1
    await catalogue.check("echo", {"text": "hi"})
    assert ledger.reads == 2


async def test_an_agent_offered_a_moment_ago_is_found_at_once(catalogue: Catalogue, ledger: Ledger) -> None:
    await catalogue.check("echo", {"text": "hi"})
    ledger.schemas["new"] = {}
    await catalogue.check("new", {"anything": 1})
    assert ledger.reads == 2


async def test_an_input_that_a_newer_worker_takes_is_not_refused_by_an_old_memory(
    catalogue: Catalogue, ledger: Ledger
) -> None:
    await catalogue.check("echo", {"text": "hi"})
    ledger.schemas["echo"] = {}
    await catalogue.check("echo", {"txet": 1})


async def test_without_a_database_everything_passes(catalogue: Catalogue, ledger: Ledger) -> None:
    ledger.is_down = True
    await catalogue.check("nobody", {"anything": 1})


async def test_before_any_worker_has_started_nothing_is_refused(catalogue: Catalogue, ledger: Ledger) -> None:
    ledger.schemas.clear()
    await catalogue.check("nobody", {"anything": 1})


async def test_a_thousand_callers_at_once_share_one_read(catalogue: Catalogue, ledger: Ledger) -> None:
    await asyncio.gather(*(catalogue.check("echo", {"text": "hi"}) for _ in range(1000)))
    assert ledger.reads <= 2


async def test_a_read_that_fails_fails_once_for_all_who_waited_for_it(catalogue: Catalogue, ledger: Ledger) -> None:
    ledger.is_down = True
    await asyncio.gather(*(catalogue.check("nobody", {}) for _ in range(100)))
    assert ledger.reads == 1
    ledger.is_down = False
    with pytest.raises(UnknownAgent):
        await catalogue.check("nobody", {})


async def test_a_ledger_that_hangs_is_waited_for_once_and_what_it_says_in_the_end_counts(
    catalogue: Catalogue, ledger: Ledger, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "READ_S", 0.05)
    ledger.answers.clear()
    await asyncio.gather(*(catalogue.check("nobody", {}) for _ in range(100)))
    hands.seconds += 0.05
    assert catalogue.is_overdue
    async with asyncio.timeout(30):
        await catalogue.check("nobody", {})
    assert ledger.reads == 1
    ledger.answers.set()
    async with asyncio.timeout(30):
        while catalogue.is_overdue:
            await asyncio.sleep(0)
    with pytest.raises(UnknownAgent):
        await catalogue.check("nobody", {})


@pytest.mark.parametrize(("text", "tokens"), [("a" * 400, 100), ("词" * 100, 100), ("词" * 50 + "a" * 200, 100)])
async def test_a_prompt_over_the_context_of_every_model_is_refused_with_its_length(
    ledger: Ledger, text: str, tokens: int
) -> None:
    prompt = {"type": "string", "x-prompt-tokens": 100}
    ledger.schemas["echo"] = {**ECHO, "properties": {**ECHO["properties"], "text": prompt}}  # type: ignore[dict-item]
    catalogue = Catalogue(cast(Database, None))
    with pytest.raises(PromptTooLong, match=f"field 'text' of agent 'echo' has about {tokens} tokens") as caught:
        await catalogue.check("echo", {"text": text})
    assert caught.value.context == {"agent": "echo", "field": "text", "tokens": tokens, "context_tokens": 100}
    await catalogue.check("echo", {"text": text[:-4]})
