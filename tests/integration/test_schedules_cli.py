"""`fleet schedule …` and `fleet limits …` as an operator types them."""

from typing import Any
from uuid import uuid4

import pytest

from shared.client import FleetClient
from tests.integration.by_hand import ByHand
from tests.integration.live import Database
from tests.integration.terminal import fleet, fleet_json, refusal
from workers.ops.background import BackgroundSupervisor


@pytest.fixture
def env(servers: BackgroundSupervisor, database: Database) -> dict[str, str]:
    return {**servers.env, "FLEET_DB_URL": database.url}


def add(env: dict[str, str], *words: str, name: str = "daily", cron: str = "30 8 * * MON-FRI") -> Any:
    return fleet_json("schedule", "add", name, cron, "report", *words, env=env)


def test_a_schedule_is_added_listed_paused_resumed_and_deleted(env: dict[str, str]) -> None:
    made = add(env, "depth=2", "--timezone", "Europe/Berlin", "--tenant", "acme", "--priority", "batch")
    assert made["input"] == {"depth": 2}
    assert (made["cron"], made["timezone"], made["tenant"], made["priority"], made["is_paused"]) == (
        "30 8 * * MON-FRI", "Europe/Berlin", "acme", "batch", False
    )  # fmt: skip
    shown = fleet("schedule", "list", env=env).stdout
    assert shown.splitlines()[0].split() == ["name", "agent", "cron", "next", "last", "task"]
    assert " 08:30 CE" in shown, "on its own clock"
    assert "fleet schedule resume daily" in fleet("schedule", "pause", "daily", env=env).stdout
    assert [one["is_paused"] for one in fleet_json("schedule", "list", env=env)] == [True]
    assert "paused" in fleet("schedule", "list", env=env).stdout
    assert fleet("schedule", "resume", "daily", env=env).stdout.startswith("Resumed: it runs next ")
    assert fleet_json("schedule", "delete", "daily", env=env) == {"name": "daily", "deleted": True}
    assert "No schedules; add one with" in fleet("schedule", "list", env=env).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add", "x", "61 * * * *", "report"), "cron '61 * * * *' is not a cron expression"),
        (("add", "x", "now and then", "report"), "is not a cron expression"),
        (("add", "x", "0 0 30 2 *", "report"), "cron"),
        (("add", "x", "* * * * *", "report", "--timezone", "Europe/Berlim"), "did you mean Europe/Berlin?"),
        (("add", "x", "* * * * *", "No Agent"), "agent name 'No Agent' must start with a letter"),
        (("add", "x", "* * * * *", "report", "--tenant", ""), "tenant"),
        (("add", "x", "* * * * *", "report", "text=" + "x" * 262_144), "the limit is 262144"),
        (("pause", "nobody"), "there is no schedule 'nobody'"),
        (("resume", "nobody"), "there is no schedule 'nobody'"),
        (("delete", "nobody"), "there is no schedule 'nobody'"),
    ],
)
def test_nonsense_is_refused_in_a_sentence_and_nothing_is_kept(
    env: dict[str, str], words: tuple[str, ...], told: str
) -> None:
    assert told in refusal(fleet("schedule", *words, env=env), code=1)
    assert fleet_json("schedule", "list", env=env) == []


def test_a_name_that_is_taken_is_refused(env: dict[str, str]) -> None:
    add(env)
    assert "there is a schedule 'daily' already" in refusal(
        fleet("schedule", "add", "daily", "* * * * *", "x", env=env), code=1
    )
    assert [one["cron"] for one in fleet_json("schedule", "list", env=env)] == ["30 8 * * MON-FRI"]


async def test_a_limit_holds_what_was_queued_and_is_shown_with_what_runs(
    env: dict[str, str], worker: ByHand, producer: FleetClient
) -> None:
    running, queued = [(await producer.asubmit("a", {}, tenant="acme")).id for _ in range(2)]
    await worker.claim(running)
    assert "at most 1 tasks of tenant acme" in fleet("limits", "set", "tenant", "acme", "1", env=env).stdout
    assert await worker.try_claim(queued) is None
    later = (await producer.asubmit("a", {}, tenant="acme")).id
    assert await worker.try_claim(later) is None
    fleet_json("limits", "set", "agent", "a", "7", env=env)
    assert fleet_json("limits", "list", env=env) == [
        {"scope": "agent", "name": "a", "max_running": 7, "running": 1, "queued": 2},
        {"scope": "tenant", "name": "acme", "max_running": 1, "running": 1, "queued": 2},
    ]
    assert "tenant  acme" in fleet("limits", "list", env=env).stdout
    for scope, name in [("tenant", "acme"), ("agent", "a")]:
        assert "has no limit any more" in fleet("limits", "unset", scope, name, env=env).stdout
    assert await worker.try_claim(queued) is not None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("unset", "tenant", "acme"), 1, "tenant 'acme' has no limit"),
        (("set", "agent", "No Agent", "1"), 1, "agent name 'No Agent'"),
        (("set", "tenant", "", "1"), 1, "tenant"),
        (("set", "tenant", "acme", str(2**31)), 1, "max_running must be from 0 to"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    env: dict[str, str], words: tuple[str, ...], code: int, told: str
) -> None:
    assert told in refusal(fleet("limits", *words, env=env), code=code)
    assert fleet_json("limits", "list", env=env) == []


async def test_the_steering_commands_tell_people_what_came_of_it(
    env: dict[str, str], worker: ByHand, producer: FleetClient
) -> None:
    first, second = [(await producer.asubmit("a", {})).id for _ in range(2)]
    claim = await worker.claim(first)
    assert fleet("signal", str(first), "go", "by=ann", env=env).stdout == "Kept for it: the task is running.\n"
    await worker.wait(claim, kind="signal", signals=("stop",), wait_s=3600, seen_wakes=1)
    shown = fleet("task", str(first), env=env).stdout
    assert "It is waiting for signal stop, until " in shown
    assert "(in 59 min)" in shown
    assert fleet("cancel", str(second), env=env).stdout == "Cancelled.\n"
    assert "is cancelled already" in refusal(fleet("cancel", str(second), env=env), code=1)
    assert "nothing is done twice" in fleet("replay", str(second), env=env).stdout
    forked = fleet("fork", str(second), env=env)
    assert (await producer.astatus(forked.stdout.strip())).forked_from == second
    assert "is queued: only a parked task" in refusal(fleet("resume", str(second), env=env), code=1)
    for words in (("cancel",), ("signal", "go"), ("resume",), ("replay",), ("fork",)):
        said = refusal(fleet(words[0], str(uuid4()), *words[1:], env=env), code=1)
        assert "the ledger has no task" in said, words
