"""What a keeper that comes into office tells, and in which order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.telemetry.keeper_metrics import LEADING
from workers.keeper import leadership as room
from workers.keeper.knobs import KeeperKnobs


class Enough(Exception):
    """The term has begun."""


async def test_who_is_seen_to_lead_is_seen_with_its_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus asks on a thread of its own, between any two lines."""
    seen: list[tuple[int, float | None]] = []

    class Office:
        async def stand(self) -> int:
            return 7

    @asynccontextmanager
    async def candidacy(*_: Any, **__: Any) -> AsyncIterator[Office]:
        yield Office()

    def rounds_of(*_: Any) -> Any:
        raise Enough

    monkeypatch.setattr(room, "candidacy", candidacy)
    monkeypatch.setattr(
        LEADING, "set", lambda leads: seen.append((leads, REGISTRY.get_sample_value("fleet_keeper_epoch")))
    )
    with pytest.raises(Enough):
        await room.stand(
            Database(DbKnobs()), holder="me", knobs=KeeperKnobs(), stop=asyncio.Event(), rounds_of=rounds_of
        )
    assert seen == [(1, 7.0)]
