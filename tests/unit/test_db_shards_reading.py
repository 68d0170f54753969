"""A map is read anew now and then, by one reader, and a shard that is silent holds nobody up."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shared.db import shards as room
from shared.db.knobs import DbKnobs
from shared.db.shard_map import BucketRow, Home, bucket_for
from shared.db.shards import Shards
from shared.db.shards_file import parse_shards
from shared.errors import DatabaseUnavailable, ShardMoved

KNOBS = DbKnobs()
FILE = "shards:\n  main: {primary: {host: a}}\n  second: {primary: {host: b}}"
THERE = BucketRow(7, 1, "open", "second")


class Told(Shards):
    """Shards that answer as the test says."""

    def __init__(self) -> None:
        super().__init__(
            parse_shards(FILE, source="f", knobs=KNOBS, broker_url=""), KNOBS, application_name="told"
        )  # fmt: skip
        self.answers: dict[str, list[BucketRow] | Exception] = {"main": [], "second": []}
        self.silent: set[str] = set()
        self.asked = 0

    async def rows(self, shard: str) -> list[BucketRow]:
        self.asked += 1
        if shard in self.silent:
            await asyncio.Event().wait()
        answer = self.answers[shard]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest_asyncio.fixture
async def shards() -> AsyncIterator[Told]:
    shards = Told()
    yield shards
    await shards.close()


async def test_a_map_is_read_once_for_all_and_again_when_it_is_doubted(shards: Told) -> None:
    await asyncio.gather(*(shards.map() for _ in range(10)))
    await shards.map()
    assert shards.asked == 2
    shards.answers["second"] = [THERE]
    assert await shards.home_of(7) == Home("main")
    shards.doubt()
    assert await shards.home_of(7) == Home("second", 1)


async def test_an_old_map_is_read_anew(shards: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAP_FOR_S", 0.0)
    await shards.map()
    shards.answers["second"] = [THERE]
    await asyncio.sleep(0.001)
    assert await shards.home_of(7) == Home("second", 1)


async def test_a_shard_that_is_away_takes_nothing_from_what_is_known(shards: Told) -> None:
    shards.answers["second"] = [THERE]
    assert await shards.home_of(7) == Home("second", 1)
    shards.answers |= {"main": DatabaseUnavailable("away"), "second": DatabaseUnavailable("away")}
    shards.doubt()
    assert await shards.home_of(7) == Home("second", 1)
    assert await shards.home_of(8) == Home("main")


async def test_a_shard_that_is_silent_is_waited_for_once_and_not_by_everybody_in_turn(
    shards: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "READ_S", 0.01)
    await shards.map()
    shards.doubt()
    shards.silent, shards.answers["second"] = {"main"}, [THERE]
    async with asyncio.timeout(5):
        assert await shards.home_of(7) == Home("second", 1)
        for _ in range(1000):
            await shards.map()
    assert shards.asked == 4


async def test_the_first_map_is_waited_for_longer_but_not_by_a_submit(
    shards: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "READ_S", 0.01)
    shards.silent = {"second"}
    async with asyncio.timeout(4):
        assert await shards.home_of(7, first_within_s=0.01) == Home("main")
    unit = asyncio.create_task(shards.home_of(7))
    assert not (await asyncio.wait({unit}, timeout=0.1))[0]
    unit.cancel()


async def test_a_shard_that_no_file_names_is_not_gone_to(shards: Told) -> None:
    shards.answers["main"] = [BucketRow(7, 1, "moved", "third")]
    with pytest.raises(ShardMoved, match="shard 'third' is not in the file of FLEET_DB_SHARDS"):
        await shards.database_of(("default", next(f"{n}" for n in range(99_999) if bucket_for(f"{n}") == 7)))
