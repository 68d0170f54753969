"""Messages are sent beside the rounds, and what the broker does not confirm goes back into the ledger's keeping."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.errors import Fenced, PublishUnconfirmed
from workers.keeper.outbox import Outbox


class Broker:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.answers: list[Future[None]] = []

    def publish(self, _message: TaskMessage) -> "Future[None]":
        self.answers.append(Future())
        return self.answers[-1]


class Ledger:
    """Keeps the ids that were put back; `is_deposed`: another keeper leads."""

    def __init__(self, *, is_deposed: bool = False) -> None:
        self.put_back: list[UUID] = []
        self.is_deposed = is_deposed

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[AsyncSession]:
        if self.is_deposed:
            raise Fenced("another process leads")
        yield cast(AsyncSession, self)

    async def execute(self, _statement: Any, values: dict[str, list[UUID]]) -> None:
        self.put_back += values["ids"]


def outbox(broker: Broker, ledger: Ledger) -> Outbox:
    return Outbox(cast(Publisher, broker), ledger)


async def begun() -> None:
    """Let the sending begin."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_broker_that_hangs_holds_no_chore_up() -> None:
    broker = Broker()
    box = outbox(broker, Ledger())
    box.send([TaskMessage("a"), TaskMessage("b")])
    await begun()
    assert len(broker.answers) == 2
    assert not box.is_broker_away
    for answer in broker.answers:
        answer.set_result(None)
    await box.flush()


async def test_what_is_not_confirmed_is_put_back_and_the_broker_counts_as_away() -> None:
    broker, ledger = Broker(), Ledger()
    box = outbox(broker, ledger)
    first, second = TaskMessage("a"), TaskMessage("b")
    box.send([first, second])
    await begun()
    broker.answers[0].set_result(None)
    broker.answers[1].set_exception(PublishUnconfirmed("down"))
    await box.flush()
    assert ledger.put_back == [second.id]
    assert box.is_broker_away


async def test_a_deposed_keeper_leaves_what_is_unsent_to_its_successor() -> None:
    broker, ledger = Broker(), Ledger(is_deposed=True)
    box = outbox(broker, ledger)
    box.send([TaskMessage("a")])
    await begun()
    broker.answers[0].set_exception(PublishUnconfirmed("down"))
    await box.flush()
    assert ledger.put_back == []
