"""A look whether a replica has come far enough: one that fails is no answer, and spoils no connection."""

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
    """A connection of either driver whose statement is cancelled by the server."""

    def __init__(self) -> None:
        self.autocommit = False
        self.is_invalidated = False

    def execute(self, *_: object) -> Any:
        raise psycopg.errors.QueryCanceled("canceling statement due to conflict with recovery")

    async def set_autocommit(self, value: bool) -> None:
        self.autocommit = value

    def invalidate(self) -> None:
        self.is_invalidated = True


async def in_a_thread(link: Link) -> bool:
    connection: Any = SimpleNamespace(
        connection=SimpleNamespace(driver_connection=link), invalidate=link.invalidate
    )  # fmt: skip
    return sync_unit._has_reached(connection, BEHIND_A_POOLER, WISH, TOKEN)


async def on_a_loop(link: Link) -> bool:
    async def invalidate() -> None:
        link.invalidate()

    driver = SimpleNamespace(connection=SimpleNamespace(driver_connection=link))
    connection: Any = SimpleNamespace(sync_connection=driver, invalidate=invalidate)
    return await unit._has_reached(connection, BEHIND_A_POOLER, WISH, TOKEN)


@pytest.mark.parametrize("look", [in_a_thread, on_a_loop])
async def test_a_look_that_fails_is_told_and_its_connection_is_given_up(
    look: Callable[[Link], Awaitable[bool]],
) -> None:
    link = Link()
    with pytest.raises(psycopg.errors.QueryCanceled):
        await look(link)
    assert link.is_invalidated
