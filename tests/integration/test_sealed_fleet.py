"""A fleet with keys: what a task brings and makes is sealed wherever it rests, and open to those who have the key."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from celery import Celery
from kombu import Queue
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import Engine, create_engine

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.client import FleetClient
from shared.contracts import QUEUE, TaskMessage
from shared.errors import SealKeyUnknown
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.sealed_input import seal_message
from shared.ledger.vault_knobs import new_key_line
from tests.integration.fleets import WAITING, StartFleet, client_of
from tests.integration.live import eventually
from tests.integration.load import celery_of, send_plain
from tests.integration.terminal import fleet as typed
from tests.integration.terminal import fleet_json, refusal
from tests.integration.test_sealed_on_disk import holds
from tests.integration.worker_of import own_worker
from workers.ops import key_commands
from workers.ops.background import BackgroundSupervisor

OURS, NEXT, FOREIGN = (new_key_line() for _ in range(3))
ALL = f"{NEXT},{OURS},{FOREIGN}"
ClientWith = Callable[[str], FleetClient]
SEALED = {
    "FLEET_AGENTS": "tests.integration.agents,tests.integration.sealed_agents",
    "FLEET_LEDGER_KEYS": OURS,
    "FLEET_LOG_REDACT": "tests.integration.sealed_agents:hide",
    "FLEET_LEDGER_DEAD_AFTER_S": "15",  # no worker dies here, however busy the machine is
    "FLEET_MEMORY_TIMEOUT_S": "30",  # nor does the cache seem away
}


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1, more={**WAITING, **SEALED}) as started:
        yield started


@pytest.fixture
def client_with(fleet: BackgroundSupervisor) -> Iterator[ClientWith]:
    """Make producers with these keys; closed at the end."""
    made = []

    def make(keys: str) -> FleetClient:
        made.append(client_of(fleet, ledger=LedgerKnobs(keys=SecretStr(keys))))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def client(client_with: ClientWith) -> FleetClient:
    return client_with(OURS)


@pytest.fixture
def engine(fleet: BackgroundSupervisor) -> Iterator[Engine]:
    engine = create_engine(fleet.db_url)
    yield engine
    engine.dispose()


@pytest.fixture
def word() -> str:
    return f"word{uuid4().hex}"


def env_of(fleet: BackgroundSupervisor, keys: str = "") -> dict[str, str]:
    return {**fleet.env, "FLEET_LEDGER_KEYS": keys}


def rows(fleet: BackgroundSupervisor, query: str, *values: Any) -> list[Any]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def tables_with(fleet: BackgroundSupervisor, word: str) -> list[str]:
    """Tables in which a row carries the word, in whatever column."""
    names = [name for (name,) in rows(fleet, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    found = f"SELECT 1 FROM {{}} t WHERE strpos(CAST(t.* AS text), '{word}') > 0 LIMIT 1"
    return [name for name in names if rows(fleet, found.format(name))]


def answered(client: FleetClient, task_id: UUID, word: str) -> Any:
    eventually(lambda: client.status(task_id).state == "waiting")
    client.signal(task_id, "answer", {"answer": word})
    return client.result(task_id, 60)


def the_answer(word: str, *heard: str) -> dict[str, Any]:
    made = {"said": word, "large": word, "told": f"not with {word}", "answer": {"answer": word}, "echo": [word]}
    return {**made, "heard": list(heard)}


def test_no_word_of_a_sealed_task_is_on_any_disk_and_its_owner_reads_all_of_it(
    fleet: BackgroundSupervisor, servers: BackgroundSupervisor, client: FleetClient, client_with: ClientWith,
    engine: Engine, word: str,
) -> None:  # fmt: skip
    task = client.submit("test.secret", {"word": word}, session="s")
    assert answered(client, task.id, word) == the_answer(word, word)
    steps = {step.name: step for step in client.status(task.id).steps}
    talk, work = {"remember", "recall"}, {"say", "large", "spawn.test.echo", "refused", "signal.answer", "gather"}
    assert talk | work == steps.keys()
    assert all(step.executions <= 1 for step in steps.values()), "it was put down, and opened what it had done"
    assert rows(fleet, "SELECT count(*) FROM blobs WHERE task_id = %s", task.id) == [(1,)]
    assert client.tasks(agent="test.secret", limit=1)[0].output == the_answer(word, word)
    control = f"word{uuid4().hex}"
    with engine.begin() as tx:  # on PostgreSQL's disk before a worker hears of it: it would have sealed it
        plain = client_with("").submit("test.kid", {"number": 1, "count": 0, "step_s": 0, "diary": control}, tx=tx)
    assert client.result(plain.id, 30) == 10
    rows(fleet, "CHECKPOINT")
    for server in ("rabbitmq", "postgres", "replica"):
        folder = servers.around.folder(server)
        assert eventually(partial(holds, folder, control)), server
        assert not holds(folder, word), server
    assert tables_with(fleet, control) == ["tasks"] and tables_with(fleet, word) == []
    with Redis.from_url(fleet.env["FLEET_MEMORY_REDIS_URL"]) as redis:
        (cached,) = redis.zrange("ctx:s", 1, -1)
    assert b"$sealed" in cached and word.encode() not in cached
    assert holds(fleet.around.run.base, "secret.told") and not holds(fleet.around.run.base, word), "no log either"
    assert not holds(fleet.around.run.base, OURS.partition(":")[2]), "nor does the key lie beside"


def test_a_fork_of_a_sealed_task_finds_what_its_original_has_done(client: FleetClient, word: str) -> None:
    task = client.submit("test.secret", {"word": word, "ask": False})
    before = task.result(60)
    forked = client.fork(task.id, from_step="refused")
    assert client.result(forked.id, 60) == before
    done = {step.name: step.finished_at for step in client.status(forked.id).steps}
    assert done["large"] == next(one.finished_at for one in task.status().steps if one.name == "large"), "not again"


def test_a_sealed_dead_letter_is_replayed_and_only_what_failed_is_done_again(
    fleet: BackgroundSupervisor, client: FleetClient, word: str, diaries: Path
) -> None:
    stone = diaries / "stone"
    stone.touch()
    task = client.submit("test.secret.stumbles", {"word": word, "stone": str(stone)})
    eventually(lambda: task.status().state == "failed")
    stone.unlink()
    assert [one["id"] for one in fleet_json("dead", "list", env=env_of(fleet))] == [str(task.id)], "a list needs no key"
    assert "sealed under key" in refusal(typed("dead", "replay", str(task.id), env=env_of(fleet)), code=1)
    (replayed,) = fleet_json("dead", "replay", str(task.id), env=env_of(fleet, OURS))
    assert (replayed["kept"], replayed["again"]) == (["say"], ["walk"])
    assert task.result(60) == [word, 1]
    assert Path(f"{stone}.diary").read_text() == "said\n"


def test_a_task_of_a_stock_celery_client_is_sealed_as_soon_as_a_worker_has_it(
    fleet: BackgroundSupervisor, client: FleetClient, word: str
) -> None:
    app = Celery(broker=fleet.broker_url)
    app.conf.update(task_queues=[Queue(QUEUE, no_declare=True)], task_default_queue=QUEUE)
    sent = app.send_task("agents.test.secret", kwargs={"word": word, "ask": False})
    app.close()
    assert client.result(sent.id, 60)["said"] == word
    assert rows(fleet, "SELECT json_object_keys(input -> 'kwargs') FROM tasks WHERE id = %s", sent.id) == [("$sealed",)]
    assert tables_with(fleet, word) == []


def test_messages_that_are_taken_off_a_crowded_queue_are_held_sealed(
    fleet: BackgroundSupervisor, client: FleetClient, word: str, diary: Path
) -> None:
    celery = celery_of(fleet)
    fleet.stop("worker-1")
    with own_worker(fleet, 2, FLEET_LEDGER_FAIR_WINDOW="5", FLEET_WORKER_CONCURRENCY="2"):
        sent = [send_plain(celery, "test.secret.slow", tenant="crowd", word=word, until=str(diary)) for _ in range(40)]
        held = "SELECT count(*) FROM tasks WHERE tenant = 'crowd' AND state = 'queued' AND published_at IS NULL"
        assert eventually(lambda: rows(fleet, held)[0][0])
        assert tables_with(fleet, word) == []
        diary.touch()
        assert {client.result(one, 60) for one in sent} == {word}
    celery.close()
    fleet.start("worker-1")


def test_a_task_of_a_producers_own_transaction_is_sealed(
    fleet: BackgroundSupervisor, client: FleetClient, engine: Engine, word: str
) -> None:
    with engine.begin() as transaction:
        task = client.submit("test.echo", {"text": word}, tx=transaction)
    assert task.result(30)["said"] == [word]
    assert tables_with(fleet, word) == []


def test_a_sealed_message_that_no_worker_could_read_is_handed_in_again_and_sealed_once(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    message = TaskMessage("diary.start", {"diary": str(diary), "number": 7})
    publisher = Publisher(BrokerKnobs(url=fleet.broker_url))
    publisher.publish(seal_message(client.vault, message)).result(60)
    publisher.close()
    (letter,) = eventually(lambda: fleet_json("dead", "list", "--agent", "diary.start", env=env_of(fleet)))
    assert str(diary) not in fleet_json("dead", "show", letter["id"], env=env_of(fleet))["body"]
    fleet.stop("worker-1")
    with own_worker(fleet, 2, FLEET_AGENTS="tests.integration.diary_agents"):
        refused = typed("dead", "replay", letter["id"], env=env_of(fleet))
        assert refused.returncode == 1 and "sealed under key" in refused.stderr
        fleet_json("dead", "replay", letter["id"], env=env_of(fleet, OURS))
        eventually(lambda: client.status(message.id).state == "succeeded")
    fleet.start("worker-1")
    assert diary.read_text().split()[:1] == ["7"]


def test_a_schedule_is_sealed_in_its_table_and_runs_by_a_keeper_without_keys(
    fleet: BackgroundSupervisor, client: FleetClient, word: str
) -> None:
    words = ("schedule", "add", f"of-{word[:8]}", "* * * * * *", "test.echo", f"text={word}")
    name = fleet_json(*words, env=env_of(fleet, OURS))["name"]
    (listed,) = fleet_json("schedule", "list", env=env_of(fleet, OURS))
    (unread,) = fleet_json("schedule", "list", env=env_of(fleet))
    assert listed["input"] == {"text": word} and unread["input"].keys() == {"$sealed"}

    def ticked() -> Any:
        ids = rows(fleet, "SELECT last_task_id FROM schedules WHERE last_task_id IS NOT NULL")
        return ids and client.result(ids[0][0], 30)

    assert eventually(ticked)["said"] == [word]
    assert tables_with(fleet, word) == []
    forked = client.fork(rows(fleet, "SELECT last_task_id FROM schedules")[0][0])
    assert client.result(forked.id, 30)["said"] == [word], "sealed as itself from now on"
    typed("schedule", "delete", name, env=env_of(fleet))


def test_a_worker_without_the_key_parks_the_task_and_resuming_it_with_the_key_finishes_it(
    fleet: BackgroundSupervisor, client_with: ClientWith, word: str
) -> None:
    stranger = client_with(FOREIGN)
    task = stranger.submit("test.secret", {"word": word, "ask": False})
    eventually(lambda: task.status().state == "parked")
    view = task.status()
    assert view.error is not None and view.error["code"] == "seal_key_unknown"
    assert view.attempt == 0, "it costs none"
    assert (
        "which FLEET_LEDGER_KEYS does not hold: add it there, last"
        in typed("task", str(task.id), env=env_of(fleet)).stdout
    )
    fleet.stop("worker-1")
    with own_worker(fleet, 2, FLEET_LEDGER_KEYS=f"{OURS},{FOREIGN}"):
        assert f"fleet result {task.id}" in typed("resume", str(task.id), env=env_of(fleet)).stdout
        reader = client_with(f"{OURS},{FOREIGN}")
        assert reader.result(task.id, 60)["said"] == word
        assert "sealed; fleet result" in typed("task", str(task.id), env=env_of(fleet)).stdout
        assert "does not hold" in refusal(typed("result", str(task.id), env=env_of(fleet)), code=2)
        with pytest.raises(SealKeyUnknown):
            stranger.result(task.id, 10)
    fleet.start("worker-1")


def test_a_run_that_was_put_down_is_parked_by_a_worker_that_cannot_open_what_it_had_done(
    fleet: BackgroundSupervisor, client: FleetClient, word: str
) -> None:
    task = client.submit("test.secret", {"word": word})
    eventually(lambda: task.status().state == "waiting")
    eventually(lambda: [one.state for one in task.status().children] == ["succeeded"])  # it would be parked as well
    fleet.stop("worker-1")
    with own_worker(fleet, 2, FLEET_LEDGER_KEYS=FOREIGN):
        client.signal(task.id, "answer", {"answer": word})
        eventually(lambda: task.status().state == "parked")
    fleet.start("worker-1")
    client.resume(task.id)
    assert task.result(60) == the_answer(word)
    assert all(step.executions <= 1 for step in task.status().steps)


def test_keys_rotate_beside_a_running_fleet_and_the_old_one_can_be_given_up(
    fleet: BackgroundSupervisor, client_with: ClientWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"word{uuid4().hex}" for _ in range(12)]
    fleet.stop("worker-1")
    old, both = client_with(OURS), client_with(f"{NEXT},{OURS}")
    with own_worker(fleet, 2, FLEET_LEDGER_KEYS=f"{NEXT},{OURS}"):
        waiting = [old.submit("test.secret", {"word": word}) for word in words[:6]]
        waiting += [both.submit("test.secret", {"word": word}) for word in words[6:]]
        eventually(lambda: all(task.status().state == "waiting" for task in waiting), within_s=60)
        for task, word in zip(waiting[::2], words[::2], strict=True):
            both.signal(task.id, "answer", {"answer": word})
        done = fleet_json("keys", "rotate", "--page-rows", "7", env=env_of(fleet, ALL))
        for task, word in zip(waiting[1::2], words[1::2], strict=True):
            both.signal(task.id, "answer", {"answer": word})
        assert [both.result(task.id, 60) for task in waiting] == [the_answer(word) for word in words]
    assert done["complete"] and done["rewrapped"] >= 6 and done["still_under"] == {}
    monkeypatch.setattr(key_commands, "TELL_EVERY_S", 0.0)
    again = typed("keys", "rotate", env=env_of(fleet, ALL))
    assert "Nothing is left under another key" in again.stdout and 'bookmark {"shelf": "tasks.input"' in again.stderr
    only = client_with(NEXT)
    assert [only.result(task.id, 10) for task in waiting] == [the_answer(word) for word in words]
    fleet.start("worker-1")
    assert not rows(fleet, "SELECT 1 FROM tasks WHERE strpos(CAST(input AS text), %s) > 0", OURS.partition(":")[0])


def test_rotation_says_what_is_in_the_way(fleet: BackgroundSupervisor, client_with: ClientWith, tmp_path: Path) -> None:
    stranger = client_with(FOREIGN)
    task = stranger.submit("test.echo", {"text": "x"}, delay_s=3600)
    found = fleet_json("keys", "rotate", here=tmp_path, env=env_of(fleet, NEXT), code=1)
    assert not found["complete"] and FOREIGN.partition(":")[0] in found["still_under"]
    mark = json.dumps(found["bookmark"])
    assert fleet_json("keys", "rotate", "--since", mark, env=env_of(fleet, NEXT))["read"] == 0, "all of it was seen"
    stranger.cancel(task.id)
    assert "FLEET_LEDGER_KEYS is empty" in refusal(typed("keys", "rotate", env=env_of(fleet)), code=2)
    assert "takes a bookmark" in refusal(typed("keys", "rotate", "--since", "x", env=env_of(fleet, NEXT)), code=2)
    assert "no bookmark of this ledger" in refusal(
        typed("keys", "rotate", "--since", '{"shelf": "x", "after": []}', env=env_of(fleet, NEXT)), code=1
    )


def test_a_new_key_is_good_for_the_setting_and_kept_nowhere() -> None:
    made = typed("keys", "new").stdout.strip()
    other = fleet_json("keys", "new")
    assert made != other["entry"] and other["entry"].startswith(f"{other['id']}:")
    LedgerKnobs(keys=SecretStr(f"{made},{other['entry']}"))
