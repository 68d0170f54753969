"""Group read: many questions, one statement, and nobody pays for another's mistake."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.errors import DatabaseUnavailable
from shared.ledger.group_read import BATCH_MAX, GroupRead


class Library:
    """Answers with ten times the number; `troubles` are raised by reads in turn, `refuses` whenever it is asked."""

    def __init__(self, *troubles: Exception, refuses: int = -1) -> None:
        self.troubles = list(troubles)
        self.refuses = refuses
        self.reads: list[list[int]] = []

    async def read(self, asked: Sequence[int]) -> list[int]:
        self.reads.append(list(asked))
        await asyncio.sleep(0)
        if self.troubles:
            raise self.troubles.pop(0)
        if self.refuses in asked:
            raise ValueError("cannot be read")
        return [one * 10 for one in asked]


async def test_what_is_asked_at_once_is_read_at_once_and_everybody_gets_his_own_answer() -> None:
    library = Library()
    group = GroupRead(library.read)
    assert await asyncio.gather(*(group.ask(number) for number in range(BATCH_MAX + 6))) == [
        number * 10 for number in range(BATCH_MAX + 6)
    ]
    assert [len(read) for read in library.reads] == [BATCH_MAX, 6]


async def test_what_is_asked_while_others_are_answered_is_asked_next() -> None:
    library = Library()
    group = GroupRead(library.read)
    first = asyncio.create_task(group.ask(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert list(await asyncio.gather(group.ask(2), group.ask(3))) == [20, 30]
    assert await first == 10
    assert await group.ask(4) == 40
    assert library.reads == [[1], [2, 3], [4]]


async def test_a_question_that_cannot_be_answered_fails_alone() -> None:
    group = GroupRead(Library(refuses=2).read)
    answers = await asyncio.gather(*(group.ask(number) for number in (1, 2, 3)), return_exceptions=True)
    assert answers[0] == 10
    assert answers[2] == 30
    assert isinstance(answers[1], ValueError)


async def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(*_: object) -> None: ...

    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", at_once)
    library = Library(*[DatabaseUnavailable("gone")] * 3)
    assert await GroupRead(library.read).ask(1) == 10
    assert len(library.reads) == 4


async def test_whoever_is_cancelled_meanwhile_is_not_asked_for() -> None:
    library = Library()
    group = GroupRead(library.read)
    asking = [asyncio.create_task(group.ask(number)) for number in (1, 2)]
    asking[0].cancel()
    await asyncio.wait(asking)
    assert asking[0].cancelled()
    assert asking[1].result() == 20
