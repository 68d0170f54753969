"""A look whether a replica has come far enough: one that fails is no answer, and what reads after it begins anew."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from shared.db import sync_unit, unit
from shared.db.decide import Wish
from shared.db.tokens import CausalToken

TOKEN = CausalToken(7, 1, 5, 5)
WISH = Wish(mode="ro", consistency="causal")
BEHIND_A_POOLER: Any = SimpleNamespace(is_replica=True, pool=SimpleNamespace(knobs=SimpleNamespace(pooler="pgbouncer")))


class Link:
    """A connection of either driver: what it was told to do, and what its server answers."""

    def __init__(self, answer: tuple[bool] | psycopg.Error) -> None:
        self.answer = answer
        self.did: list[str] = []


class SyncLink(Link):
    def execute(self, *_: object) -> Any:
        self.did.append("look")
        if isinstance(self.answer, psycopg.Error):
            raise self.answer
        return SimpleNamespace(fetchone=lambda: self.answer)

    def begin(self) -> None:
        self.did.append("begin")


class AsyncLink(Link):
    async def execute(self, *_: object) -> Any:
        self.did.append("look")
        if isinstance(self.answer, psycopg.Error):
            raise self.answer
        return self

    async def fetchone(self) -> Any:
        return self.answer

    async def begin(self) -> None:
        self.did.append("begin")


async def in_a_thread(answer: Any) -> tuple[bool, list[str]]:
    link = SyncLink(answer)
    connection: Any = SimpleNamespace(connection=SimpleNamespace(driver_connection=link))
    return sync_unit._has_reached(connection, BEHIND_A_POOLER, WISH, TOKEN), link.did


async def on_a_loop(answer: Any) -> tuple[bool, list[str]]:
    link = AsyncLink(answer)
    connection: Any = SimpleNamespace(
        sync_connection=SimpleNamespace(connection=SimpleNamespace(driver_connection=link))
    )
    return await unit._has_reached(connection, BEHIND_A_POOLER, WISH, TOKEN), link.did


Looking = Callable[[Any], Awaitable[tuple[bool, list[str]]]]


@pytest.mark.parametrize("looking", [in_a_thread, on_a_loop])
async def test_a_look_that_fails_is_told(looking: Looking) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        await looking(psycopg.errors.QueryCanceled("canceling statement due to conflict with recovery"))


@pytest.mark.parametrize("looking", [in_a_thread, on_a_loop])
@pytest.mark.parametrize("has_reached", [True, False])
async def test_what_reads_after_a_look_begins_after_it(looking: Looking, has_reached: bool) -> None:
    """In a repeatable read the snapshot of a look is older than its answer."""
    assert await looking((has_reached,)) == (has_reached, ["look", "begin"])
