"""`fleet submit`, `result`, `tasks` and `schema` against a running fleet, as people and scripts meet them."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from tests.integration.fleets import UNHURRIED
from tests.integration.live import eventually, users_of
from tests.integration.terminal import fleet, fleet_json, refusal
from workers.ops.surroundings import ROOT

NOBODY_LISTENS = {
    "FLEET_DB_URL": "postgresql+psycopg://fleet@127.0.0.1:1/fleet",
    "FLEET_BROKER_URL": "amqp://guest@127.0.0.1:1//",
}


@dataclass(frozen=True, slots=True)
class Started:
    """A fleet that `fleet up` has started: in which folder, and what it said."""

    folder: Path
    said: str


@pytest.fixture(scope="module")
def started(run_folder: Callable[[], Path]) -> Iterator[Started]:
    folder = run_folder().parent
    up = fleet("up", "--profile", "embedded", "--workers", "2", here=folder, env=UNHURRIED)
    assert up.returncode == 0, up.stderr
    yield Started(folder, up.stdout)
    assert fleet("down", here=folder).returncode == 0


@pytest.fixture(scope="module")
def here(started: Started) -> Path:
    """A folder in which `fleet up` has started a fleet."""
    return started.folder


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A folder without a fleet."""
    return tmp_path


def test_a_start_tells_where_everything_is_and_starts_as_many_workers_as_asked_for(started: Started) -> None:
    servers = {one["name"]: one for one in fleet_json("status", at=started.folder)["servers"]}
    assert {"postgres", "replica", "redis", "vectors", "model", "keeper", "worker-1", "worker-2", "flower"} <= set(
        servers
    )
    url = servers["flower"]["url"]
    assert url in started.said
    with urllib.request.urlopen(f"{url}/healthcheck", timeout=10) as answer:
        assert answer.status == 200


def test_every_process_of_a_fleet_runs_as_an_unprivileged_user(here: Path) -> None:
    seen = {one["name"]: one["pid"] for one in fleet_json("status", at=here)["servers"] if one["pid"]}
    assert len(seen) >= 9
    assert {name: users_of(pid) for name, pid in seen.items() if 0 in users_of(pid)} == {}


def test_messages_that_nobody_can_read_are_recorded_on_the_embedded_broker_too(here: Path) -> None:
    publisher = Publisher(BrokerKnobs(url=fleet_json("status", at=here)["env"]["FLEET_BROKER_URL"]))
    headers = {"task": "agents.chat", "id": str(uuid4())}
    publisher.send({**headers, "fleet": {"bad\x00name": 1}}, b"[[], {}, null]", task_id="1").result(60)
    publisher.send({**headers, "id": "nonsense"}, b"[[], {}, null]", task_id="2").result(60)
    publisher.close()

    def reasons() -> list[str]:
        letters = fleet_json("dead", "list", "--error", "bad_message", at=here)
        return sorted(one["error"]["message"] for one in letters)

    eventually(lambda: len(reasons()) == 2)
    assert reasons()[0].startswith("fleet.bad\ufffdname: ")
    assert reasons()[1].startswith("id: ")


def test_a_submitted_task_is_waited_for_and_shown_with_its_steps(here: Path) -> None:
    seen = fleet_json("submit", "chat", "message=Hello", "max_tokens=4", "--session", "s", "--wait", here=here)
    assert (seen["state"], seen["attempt"]) == ("succeeded", 1)
    assert seen["accepted_by"] in ("ledger", "broker"), "whoever was quicker"
    assert seen["output"]["level"] == "L0"
    assert seen["report"]["output_tokens"] <= 4
    assert [step["name"] for step in seen["steps"]] == ["recall", "retrieve", "chat", "remember"]
    assert seen["repeated_steps"] == 0


def test_submit_result_tasks_and_task_tell_the_same_story(here: Path) -> None:
    tenant = uuid4().hex
    words = ("submit", "chat", "--input", "-", "max_tokens=4", "--tenant", tenant)
    accepted = fleet_json(*words, here=here, stdin='{"message": "Hello", "max_tokens": 9}')
    result = fleet_json("result", accepted["id"], here=here)
    assert result["state"] == "succeeded"
    assert result["report"]["output_tokens"] <= 4, "a word wins over --input"
    assert result == fleet_json("task", accepted["id"], here=here) == fleet_json("tasks", accepted["id"], here=here)
    listed = fleet_json("tasks", "--tenant", tenant, "--agent", "chat", "--state", "succeeded", here=here)
    assert [one["id"] for one in listed] == [accepted["id"]]
    assert fleet_json("tasks", "--tenant", tenant, "--state", "failed", here=here) == []


def test_people_get_an_id_an_output_and_tables(here: Path) -> None:
    accepted = fleet("submit", "chat", "message=Hello", "max_tokens=4", at=here)
    task_id = accepted.stdout.strip()
    assert f"fleet result {task_id}" in accepted.stderr
    result = fleet("result", task_id, at=here)
    assert json.loads(result.stdout)["level"] == "L0"
    assert "level L0" in result.stderr
    listed = fleet("tasks", "--limit", "3", at=here)
    headings = ["id", "agent", "state", "try", "steps", "tokens", "level", "age", "took"]
    assert listed.stdout.splitlines()[0].split() == headings
    assert task_id in listed.stdout
    assert "Repeated completed steps: 0" in fleet("task", task_id, at=here).stdout


def test_the_same_key_is_the_same_task(here: Path) -> None:
    words = ("submit", "chat", "message=Hello", "max_tokens=2", "--key", uuid4().hex)
    assert fleet_json(*words, at=here)["id"] == fleet_json(*words, at=here)["id"]


def test_a_running_fleet_is_found_from_elsewhere_by_its_folder_and_by_the_environment(
    here: Path, nowhere: Path
) -> None:
    assert fleet("tasks", "--dir", str(here / ".fleet"), here=nowhere).returncode == 0
    addresses = fleet_json("status", at=here)["env"]
    assert fleet("tasks", at=nowhere, env=addresses).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("submit", "nobody", "a=1"), 1, "no worker offers an agent 'nobody'; there are: chat"),
        (("submit", "no one"), 1, "agent name 'no one' must start with a letter"),
        (("submit", "chat"), 1, "'message' is a required property"),
        (("submit", "chat", "message=x", "mesage=y"), 1, "'mesage' was unexpected"),
        (("submit", "chat", "message=42"), 1, "field 'message' of agent 'chat': 42 is not of type 'string'"),
        (("submit", "chat", "message=x", "--tenant", ""), 1, "tenant: string should have at least 1 character"),
        (("submit", "chat", "hello"), 2, "'hello' is not KEY=VALUE"),
        (("submit", "chat", "--input", "{message: x}"), 2, "--input is not JSON"),
        (("submit", "chat", "--input", "[" * 100_000), 2, "--input is not JSON"),
        (("submit", "chat", "--input", "[1]"), 2, "--input must be a JSON object of named inputs, not list"),
        (("submit", "chat", "--input", "-"), 2, "standard input is not JSON"),
        (("result", str(uuid4())), 1, "the ledger has no task"),
        (("task", str(uuid4())), 1, "the ledger has no task"),
        (("tasks", "12"), 1, "task id '12' is not a UUID"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    here: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    assert sentence in refusal(fleet(*words, at=here), code=code)


def test_machines_get_a_refusal_as_one_object(here: Path) -> None:
    error = json.loads(refusal(fleet("submit", "nobody", "--json", at=here), code=1))["error"]
    assert (error["code"], error["context"]) == ("unknown_agent", {"agent": "nobody"})


def test_a_result_that_is_not_ready_in_time_is_exit_code_3(here: Path) -> None:
    words = ("submit", "chat", "message=Hello", "max_tokens=4", "--at", "5s", "--wait", "--timeout-s", "0", "--json")
    error = json.loads(refusal(fleet(*words, at=here), code=3))["error"]
    assert error["code"] == "result_pending"
    assert fleet_json("result", error["context"]["task_id"], at=here)["state"] == "succeeded"


def test_a_failed_task_is_exit_code_1_with_its_recorded_reason(here: Path) -> None:
    done = fleet("submit", "chat", "message=Hello", "--deadline-s", "0", "--wait", "--json", at=here)
    error = json.loads(refusal(done, code=1))["error"]
    assert (error["code"], error["context"]["error"]["code"]) == ("task_failed", "deadline_spent")
    shown = fleet("task", error["context"]["task_id"], at=here)
    assert (shown.returncode, "Error: the deadline passed" in shown.stdout) == (0, True)


def test_a_task_that_starts_later_is_seen_waiting_and_cancelled_at_once(here: Path) -> None:
    words = ("submit", "chat", "message=Hello", "--at", "2h", "--priority", "batch")
    accepted = fleet_json(*words, at=here)["id"]
    shown = fleet("task", accepted, at=here).stdout
    assert "It is waiting for its start, until " in shown
    assert "(in 1 h)" in shown
    assert "priority batch" in shown
    assert accepted in [one["id"] for one in fleet_json("tasks", "--state", "waiting", at=here)]
    assert fleet("cancel", accepted, at=here).stdout == "Cancelled.\n"
    assert "the task was cancelled" in refusal(fleet("result", accepted, at=here), code=1)
    assert "is cancelled already" in refusal(fleet("cancel", accepted, at=here), code=1)


def test_a_running_task_is_cancelled_and_what_is_left_is_sound(here: Path) -> None:
    accepted = fleet_json("submit", "chat", "message=Tell me a long story", "max_tokens=2000", at=here)["id"]
    assert fleet_json("cancel", accepted, "--timeout-s", "60", at=here)["state"] == "cancelled"
    verdict = fleet_json("verify", at=here)
    assert verdict["holds"] is True, verdict


def test_a_failed_task_is_found_among_the_dead_letters_and_put_aside(here: Path) -> None:
    tenant = uuid4().hex
    words = ("submit", "chat", "message=Hello", "--tenant", tenant, "--deadline-s", "0", "--wait")
    assert fleet(*words, at=here).returncode == 1
    (letter,) = fleet_json("dead", "list", "--tenant", tenant, "--error", "deadline_spent", at=here)
    assert fleet_json("dead", "replay", letter["id"], at=here)[0]["replayed"] is True
    assert fleet("result", letter["id"], at=here).returncode == 1, "its deadline was nought, and is so again"
    assert fleet_json("dead", "discard", "--tenant", tenant, "--yes", at=here) == [
        {"id": letter["id"], "discarded": True}
    ]
    assert fleet_json("dead", "list", "--tenant", tenant, at=here) == []


def test_schema_is_printed_as_it_is_committed(nowhere: Path) -> None:
    committed = ROOT / "deploy" / "task-message.v1.schema.json"
    assert fleet("schema", at=nowhere).stdout == committed.read_text("utf-8")


@pytest.mark.parametrize("words", [("submit", "chat", "message=x"), ("result", str(uuid4())), ("tasks",)])
def test_without_a_fleet_the_remedy_is_named(nowhere: Path, words: tuple[str, ...]) -> None:
    said = refusal(fleet(*words, at=nowhere), code=2)
    assert said == "Error: No fleet runs here: start one with `fleet up`, or set FLEET_DB_URL and FLEET_BROKER_URL.\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("submit", "chat", "message=x"), "the task was not accepted: PostgreSQL does not answer"),
        (("result", str(uuid4()), "--timeout-s", "0.5"), "PostgreSQL at 127.0.0.1:1 does not answer"),
        (("tasks",), "PostgreSQL at 127.0.0.1:1 does not answer"),
    ],
)
def test_servers_that_do_not_answer_are_one_sentence(nowhere: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refusal(fleet(*words, at=nowhere, env=NOBODY_LISTENS), code=1)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("submit", "chat", "message=x"), "FLEET_LEDGER_BATCH_MAX", "abc"),
        (("tasks",), "FLEET_BROKER_QUEUE_TYPE", "classic"),
        (("up",), "FLEET_LEDGER_BATCH_MAX", "abc"),
        (("up",), "FLEET_BROKER_QUEUE_TYPE", "classic"),
        (("demo",), "FLEET_BROKR_URL", "amqp://127.0.0.1//"),
    ],
)
def test_a_wrong_variable_is_named_before_anything_starts(
    nowhere: Path, words: tuple[str, ...], name: str, value: str
) -> None:
    assert name in refusal(fleet(*words, at=nowhere, env={name: value}), code=2)
    assert not (nowhere / ".fleet").exists()
