"""What the answer cache promises, wherever the answers are."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.llm.answer_cache import AnswerCache, Kept

KEY = "k" * 64


def answer(text: str = "Paris.", *, age_s: float = 0.0) -> Kept:
    """An answer of that age."""
    return Kept(text, "big", "first", 3, 5, round(datetime.now(UTC).timestamp() - age_s, 3))


@dataclass
class AnswerWorld:
    """A cache, and another worker's door to the same one."""

    cache: AnswerCache
    other: Callable[[], AnswerCache]


class AnswerSuite:
    """Run against the fake and against Redis: a subclass gives the fixture `world`."""

    async def test_a_kept_answer_is_found_by_every_worker_as_it_was(self, world: AnswerWorld) -> None:
        kept = answer("Bergen: 你好 ☂")
        await world.cache.keep("acme", KEY, kept)
        assert await world.other().find("acme", KEY, max_age_s=60) == kept

    async def test_an_answer_of_another_tenant_or_to_another_question_is_never_found(self, world: AnswerWorld) -> None:
        await world.cache.keep("acme", KEY, answer())
        for tenant, key in (("acme2", KEY), ("ACME", KEY), ("", KEY), ("acme:", KEY), ("acme", "l" * 64)):
            assert await world.cache.find(tenant, key, max_age_s=60) is None

    async def test_an_answer_that_is_too_old_is_not_found(self, world: AnswerWorld) -> None:
        await world.cache.keep("acme", KEY, answer(age_s=100))
        assert await world.cache.find("acme", KEY, max_age_s=60) is None
        assert await world.cache.find("acme", KEY, max_age_s=200) is not None

    async def test_an_answer_from_a_clock_that_runs_ahead_is_new_not_negative(self, world: AnswerWorld) -> None:
        await world.cache.keep("acme", KEY, answer(age_s=-30))
        found = await world.cache.find("acme", KEY, max_age_s=60)
        assert found is not None and found.age_s(datetime.now(UTC)) == 0.0

    async def test_erasing_a_tenant_takes_all_its_answers_and_nobody_elses(self, world: AnswerWorld) -> None:
        for tenant in ("acme", "other"):
            for number in range(5):
                await world.cache.keep(tenant, f"{number:064d}", answer())
        assert await world.other().erase("acme") == 5
        assert await world.cache.erase("acme") == 0
        assert [await world.cache.find("acme", f"{number:064d}", max_age_s=60) for number in range(5)] == [None] * 5
        assert await world.cache.find("other", f"{0:064d}", max_age_s=60) is not None

    async def test_a_newer_answer_takes_the_place_of_an_older_one(self, world: AnswerWorld) -> None:
        await world.cache.keep("acme", KEY, answer("old"))
        await world.cache.keep("acme", KEY, answer("new"))
        found = await world.cache.find("acme", KEY, max_age_s=60)
        assert found is not None and found.text == "new"
        assert await world.cache.erase("acme") == 1

    async def test_all_workers_have_the_same_secret(self, world: AnswerWorld) -> None:
        secret = await world.cache.secret()
        assert secret is not None and await world.other().secret() == secret
