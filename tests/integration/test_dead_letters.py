"""`fleet dead …`: what failed and what nobody could read, found, tried again with what it has cost, or put aside."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.client import FleetClient
from shared.contracts import TaskMessage
from shared.errors import FleetError, LLMRefused
from tests.integration.by_hand import ByHand
from tests.integration.live import Database
from tests.integration.terminal import fleet, fleet_json, refusal
from workers.ops.background import BackgroundSupervisor


@pytest.fixture
def env(servers: BackgroundSupervisor, database: Database) -> dict[str, str]:
    return {**servers.env, "FLEET_DB_URL": database.url}


async def failed(
    producer: FleetClient, worker: ByHand, *names: str, agent: str = "a", tenant: str = "default",
    error: FleetError | None = None,
) -> UUID:  # fmt: skip
    """A task that has failed after these steps."""
    task_id = (await producer.asubmit(agent, {}, tenant=tenant)).id
    claim = await worker.claim(task_id)
    await worker.steps(claim, *names)
    await worker.runs.fail(claim, error or FleetError("it broke"), {})
    return task_id


async def unreadable(worker: ByHand, headers: dict[str, Any], body: str, *, reason: str = "the id is missing") -> str:
    """A message that the keeper has put on record."""
    rows = await worker.all(
        "INSERT INTO dead_letters (reason, headers, body) VALUES (:reason, CAST(:headers AS json), :body) RETURNING id",
        reason=reason, headers=json.dumps(headers), body=body,
    )  # fmt: skip
    return f"message-{rows[0].id}"


async def test_the_list_shows_failed_tasks_and_unreadable_messages_with_reason_and_cost(
    producer: FleetClient, worker: ByHand, env: dict[str, str]
) -> None:
    task = await failed(producer, worker, "one", "two", agent="writer", tenant="acme")
    letter = await unreadable(worker, {"task": "agents.chat", "fleet": {"tenant": "acme"}}, "[]")
    found = fleet_json("dead", "list", env=env)
    assert [one["id"] for one in found] == [letter, str(task)], "the newest first"
    assert found[0] | {"at": 0} == {
        "id": letter, "kind": "message", "agent": "chat", "tenant": "acme", "at": 0, "attempt": 0,
        "error": {"code": "bad_message", "message": "the id is missing"},
        "paid": {"input_tokens": 0, "output_tokens": 0, "cost": 0.0, "calls": 0, "steps": 0},
        "headers": {"task": "agents.chat", "fleet": {"tenant": "acme"}}, "body": "[]",
    }  # fmt: skip
    assert (found[1]["agent"], found[1]["tenant"], found[1]["attempt"]) == ("writer", "acme", 1)
    assert found[1]["paid"] == {"input_tokens": 20, "output_tokens": 2, "cost": 0.5, "calls": 2, "steps": 2}
    shown = fleet("dead", "list", env=env).stdout
    assert shown.splitlines()[0].split() == ["id", "agent", "tenant", "tries", "paid", "tokens", "age", "error"]
    assert f"{task}  it broke" in shown


async def test_the_list_is_filtered_by_agent_tenant_error_and_time(
    producer: FleetClient, worker: ByHand, env: dict[str, str]
) -> None:
    refused = await failed(producer, worker, agent="writer", error=LLMRefused("the endpoint said NO"))
    old = await failed(producer, worker, tenant="acme")
    await worker.do("UPDATE tasks SET finished_at = now() - interval '3 hours' WHERE id = :id", id=old)
    letter = await unreadable(worker, {"task": "agents.writer"}, "{")
    for words, expected in [
        (("--agent", "writer"), [letter, str(refused)]),
        (("--tenant", "acme"), [str(old)]),
        (("--error", "llm_refused"), [str(refused)]),
        (("--error", "said no"), [str(refused)]),
        (("--error", "bad_message"), [letter]),
        (("--since", "2h"), [letter, str(refused)]),
        (("--until", "2h"), [str(old)]),
        (("--since", "2020-01-01", "--limit", "1"), [letter]),
        (("--agent", "nobody"), []),
    ]:
        assert [one["id"] for one in fleet_json("dead", "list", *words, env=env)] == expected, words


async def test_a_letter_is_shown_whole(producer: FleetClient, worker: ByHand, env: dict[str, str]) -> None:
    task = await failed(producer, worker, "one")
    shown = fleet("dead", "show", str(task), env=env).stdout
    assert "Error: it broke" in shown
    assert "Paid so far: 10 + 1 tokens in 1 model calls" in shown
    assert f"fleet dead replay {task}" in shown
    assert fleet_json("dead", "show", str(task), env=env)["task"]["steps"][0]["name"] == "one"
    letter = await unreadable(worker, {"task": "agents.chat"}, '[[], {"message": "hi"}, null]')
    shown = fleet("dead", "show", letter, env=env).stdout
    assert '"message": "hi"' in shown
    assert "Error: the id is missing" in shown


async def test_a_replay_says_what_is_kept_and_what_is_paid_again(
    producer: FleetClient, worker: ByHand, env: dict[str, str]
) -> None:
    task = await failed(producer, worker, "one", "two", "three")
    said = fleet("dead", "replay", str(task), "--from-step", "two", env=env)
    assert said.returncode == 0, said.stderr
    assert "1 step kept (10 + 1 tokens already paid); again: two, three (20 + 2 tokens were paid" in said.stdout
    assert fleet_json("dead", "list", env=env) == []
    assert await worker.steps(await worker.claim(task), "one", "two", "three") == ["two", "three"]


async def test_a_filter_looks_at_all_messages_and_not_at_the_newest_alone(worker: ByHand, env: dict[str, str]) -> None:
    """As many as the list shows by default came later, and are of others."""
    mine = await unreadable(worker, {"task": "agents.chat", "fleet": {"tenant": "acme"}}, "[]")
    default = await unreadable(worker, {"task": "agents.chat", "fleet": {}}, "[]")
    for _ in range(21):
        await unreadable(worker, {"task": "agents.other", "fleet": {"tenant": "foreign"}}, "[]")
    await unreadable(worker, {"task": 7, "fleet": [1]}, "[]")

    def found(*options: str) -> list[str]:
        return [one["id"] for one in fleet_json("dead", "list", *options, env=env)]

    assert found("--agent", "chat") == [default, mine]
    assert found("--tenant", "acme") == [mine]
    assert found("--tenant", "default", "--agent", "chat") == [default]
    assert len(found("--tenant", "foreign")) == 20


async def test_many_are_replayed_by_what_they_have_in_common_and_only_with_a_yes(
    producer: FleetClient, worker: ByHand, env: dict[str, str]
) -> None:
    chosen = [await failed(producer, worker, "one", agent="writer") for _ in range(2)]
    other = await failed(producer, worker)
    said = refusal(fleet("dead", "replay", "--agent", "writer", env=env), code=2)
    assert "dead letters that fit: 2; they have cost 20 + 2 tokens in 2 model calls, 0.5000 by the price list; " in said
    assert "add --yes to replay them" in said
    done = fleet_json("dead", "replay", "--agent", "writer", "--yes", env=env)
    assert {(one["id"], one["replayed"]) for one in done} == {(str(one), True) for one in chosen}
    assert [one["id"] for one in fleet_json("dead", "list", env=env)] == [str(other)]


async def test_a_message_is_published_again_once_it_can_be_read(
    producer: FleetClient, worker: ByHand, env: dict[str, str]
) -> None:
    message = TaskMessage("a", {"x": 1})
    letter = await unreadable(worker, message.wire_headers(), message.wire_body().decode())
    hopeless = await unreadable(worker, {"task": "agents.a"}, "[]")
    done = fleet("dead", "replay", letter, hopeless, "--json", env=env)
    assert done.returncode == 1
    first, second = json.loads(done.stdout)
    assert (first["replayed"], first["task_id"]) == (True, str(message.id))
    assert (second["replayed"], second["error"]["code"]) == (False, "bad_message")
    assert second["error"]["message"] == f"{hopeless} still cannot be read: id: field required"
    assert (await producer.astatus(message.id)).state == "queued"
    assert [one["id"] for one in fleet_json("dead", "list", env=env)] == [hopeless]


async def test_what_is_discarded_is_off_the_list_and_a_task_stays_in_the_ledger(
    producer: FleetClient, worker: ByHand, env: dict[str, str]
) -> None:
    task, letter = await failed(producer, worker), await unreadable(worker, {}, "x")
    fleet_json("dead", "discard", str(task), letter, env=env)
    assert fleet_json("dead", "list", env=env) == []
    assert (await producer.astatus(task)).state == "failed"
    assert "is discarded, no dead letter" in refusal(fleet("dead", "discard", str(task), env=env), code=1)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("replay",), 2, "say which to replay"),
        (("discard",), 2, "say which to discard"),
        (("replay", "x", "--agent", "a"), 2, "say which to replay"),
        (("show", "message-99"), 1, "there is no dead letter 'message-99'"),
        (("show", "message-x"), 1, "names no dead letter"),
        (("show", str(uuid4())), 1, "the ledger has no task"),
        (("discard", "nonsense"), 1, "is not a UUID"),
        (("list", "--since", "yesterday"), 2, "--since 'yesterday' is not a time"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    env: dict[str, str], words: tuple[str, ...], code: int, told: str
) -> None:
    assert told in refusal(fleet("dead", *words, env=env), code=code)
