"""Language models die under a running fleet and return: no task fails, and their own journals say who was asked."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from redis import Redis

from shared.client import FleetClient, SubmittedTask
from shared.errors import BadInput, PromptTooLong, TaskFailed
from tests.fakes.provider import Provider
from tests.integration.fleets import WAITING, StartFleet
from tests.integration.live import eventually
from tests.integration.terminal import fleet as typed
from tests.integration.terminal import fleet_json
from tests.integration.worker_of import OwnWorker, own_worker
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

RUNS = 200
ANSWER_S = 1.5
TIMEOUT_S = 12.0
"""Of one call: long enough for a healthy answer on a machine that is busy with other things."""
OPEN_S = 1.0
PROBES = 3
BUDGET = 150
SPENT = 18
"""Tokens that the providers say each answer took."""
FILE = f"""\
version: 1
currency: EUR
endpoints:
  first:
    base_url: FIRST
    timeouts: &times {{connect_s: 4, total_s: {TIMEOUT_S}}}
    breaker: &breaker {{recovery_timeout_s: {OPEN_S}, max_recovery_timeout_s: 2, slow_call_s: 120}}
    retry: &retry {{base_s: 0.2}}
  second: {{base_url: SECOND, timeouts: *times, breaker: *breaker, retry: *retry}}
models:
  big: {{endpoint: first, context_tokens: 4000, price: {{input_per_million: 10, output_per_million: 20}}}}
  small: {{endpoint: second, context_tokens: 2000, price: {{input_per_million: 0, output_per_million: 0}}}}
chains: {{default: [big, small]}}
agents:
  chat: {{cache: degraded}}
  ask.patient: {{when_down: wait}}
  ask.estate: {{run_budget: {{tokens: {BUDGET}}}}}
ladder: {{recover_over_s: 1, static_answer: "Nobody is in."}}
"""


class Models:
    """Two providers on a loop of their own, and the file that names them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.first, self.second = Provider("first"), Provider("second")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def open(self) -> None:
        """Listen, and write the file."""
        self._thread.start()
        for one in (self.first, self.second):
            asyncio.run_coroutine_threadsafe(one.open(), self._loop).result(10)
        self.file.write_text(FILE.replace("FIRST", self.first.base_url).replace("SECOND", self.second.base_url))

    def close(self) -> None:
        """Hang up."""
        for one in (self.first, self.second):
            asyncio.run_coroutine_threadsafe(one.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def return_all(self, *, answer_s: float = 0.02) -> None:
        """Both are well."""
        for one in (self.first, self.second):
            one.health, one.delay_s = "well", answer_s

    def die(self) -> float:
        """Both fail; since when."""
        self.first.die("broken")
        self.second.die("cut")
        return time.monotonic()

    def asked(self, text: str) -> int:
        """How often somebody was asked just this."""
        said = [one["messages"][-1]["content"] for one in (*self.first.requests, *self.second.requests)]
        return said.count(text)

    def asked_since(self, moment: float) -> int:
        """Requests that reached anybody after a moment."""
        return self.first.since(moment) + self.second.since(moment)


@pytest.fixture(scope="module")
def models(run_folder: Callable[[], Path]) -> Iterator[Models]:
    models = Models(run_folder().parent / "llm.yaml")
    models.open()
    yield models
    models.close()


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet, models: Models) -> Iterator[BackgroundSupervisor]:
    more = {**WAITING, "FLEET_AGENTS": "tests.integration.asking_agents", "FLEET_LLM_CONFIG": str(models.file)}
    with start_fleet(1, more=more) as started:
        yield started


@pytest.fixture(scope="module")
def second_worker(fleet: BackgroundSupervisor) -> Iterator[OwnWorker]:
    """Beside worker-1, with a metrics port."""
    with own_worker(fleet, 2) as worker:
        yield worker


@pytest.fixture(autouse=True)
def all_well(fleet: BackgroundSupervisor, second_worker: OwnWorker, models: Models) -> None:
    """Each test begins with models that are up, and with a fleet that does not remember their deaths."""
    models.return_all()
    with Redis.from_url(fleet.redis_url) as redis:
        for name in redis.scan_iter("fleet:*"):
            if not name.startswith(b"fleet:llm:"):
                redis.delete(name)


def ask(client: FleetClient, message: str, **inputs: Any) -> SubmittedTask:
    """A message to the chat agent."""
    return client.submit("chat", {"message": message, "passages": 0, **inputs})


def ask_all(client: FleetClient, messages: list[str]) -> list[dict[str, Any]]:
    """Many at once; their outputs."""
    with ThreadPoolExecutor(16) as producers:
        tasks = list(producers.map(lambda message: ask(client, message), messages))
        return list(producers.map(lambda task: task.result(60), tasks))


def answers_of(fleet: BackgroundSupervisor) -> list[tuple[float, str, str, UUID]]:
    """When each answer was in the journal, at which level, by whom, in which run; in the order of time.

    A run that changed its worker meanwhile changes none of it.
    """
    query = """SELECT extract(epoch FROM s.finished_at)::float8, s.result ->> 'level', s.result ->> 'endpoint', t.id
        FROM steps s JOIN tasks t ON t.id = s.task_id
        WHERE t.agent = 'ask.on' AND s.name = 'chat' AND s.state = 'done' ORDER BY s.finished_at"""
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


def last_levels(fleet: BackgroundSupervisor) -> set[str]:
    """At which levels the runs were answered last."""
    return set({run: level for _, level, _, run in answers_of(fleet)}.values())


def answers_at(client: FleetClient, level: str) -> bool:
    """Whether a new question is answered at this level."""
    return answer_at(client, level, f"hello at {time.monotonic()}") is not None


def answer_at(client: FleetClient, level: str, question: str) -> dict[str, Any] | None:
    """The answer, if it was given at this level: a worker spares for a second a model that it has just seen return."""
    answer: dict[str, Any] = ask(client, question).result(60)
    return answer if answer["level"] == level else None


def test_the_primary_dies_under_200_concurrent_runs_and_no_task_fails(
    fleet: BackgroundSupervisor, client: FleetClient, models: Models, run_folder: Callable[[], Path]
) -> None:
    first, second = models.first, models.second
    models.return_all(answer_s=ANSWER_S)
    stop = run_folder().parent / "stop"
    inputs = [{"number": number, "until": str(stop)} for number in range(RUNS)]
    with ThreadPoolExecutor(16) as producers:
        tasks = list(producers.map(lambda one: client.submit("ask.on", one), inputs))
        eventually(lambda: len(first.journal) >= RUNS + 50, within_s=60)
        eventually(lambda: first.in_flight >= 0.9 * RUNS and second.since(time.monotonic() - 2) == 0, within_s=60)

        died, died_at, waiting = time.monotonic(), time.time(), first.in_flight
        first.die("silent")
        eventually(lambda: second.since(died) >= RUNS + 50, within_s=60)
        dead_s, extra = time.monotonic() - died, first.since(died)

        models.return_all(answer_s=ANSWER_S)
        returned = time.monotonic()
        eventually(lambda: first.since(returned) >= RUNS, within_s=60)
        eventually(lambda: last_levels(fleet) == {"L0"}, within_s=60)
        back_at = time.time()
        stop.touch()
        asked = list(producers.map(lambda task: task.result(60), tasks))

    answers = answers_of(fleet)
    assert len(answers) >= sum(asked)
    assert {(level, who) for _, level, who, _ in answers} == {("L0", "first"), ("L1", "second")}
    assert "L0" in {level for at, level, _, _ in answers if at < died_at}
    backup_s = min(at for at in second.journal if at > died) - died
    assert backup_s < 2 * TIMEOUT_S, "the backup is asked after one call's timeout, not after a second one"
    l1_s = min(at for at, level, _, _ in answers if level == "L1" and at > died_at) - died_at
    assert l1_s < 2 * TIMEOUT_S + ANSWER_S, "and has answered within its own time"
    probes = PROBES * (dead_s / OPEN_S + 1)
    assert extra <= (RUNS - waiting) + probes, "who was between two questions finds out once; then only probes go there"
    report, last = tasks[0].status().report or {}, {run: who for _, _, who, run in answers}[tasks[0].id]
    assert (report["level"], bool(report["reasons"]), report["endpoint"]) == ("L1", True, last)
    assert report["cost"] > 0
    l0_s = back_at - died_at - (returned - died)
    print(f"{waiting} in flight, {extra} extra calls in {dead_s:.1f} s, L1 after {l1_s:.1f} s, L0 after {l0_s:.1f} s")


def test_all_die_and_200_tasks_are_answered_from_the_cache_or_in_friendly_words_until_they_return(
    client: FleetClient, models: Models
) -> None:
    eventually(lambda: answers_at(client, "L0"), within_s=60)
    known: dict[str, Any] = eventually(lambda: answer_at(client, "L0", "a known question"), within_s=60)
    assert (known["endpoint"], known["model"]) == ("first", "first")
    died = models.die()
    ask_all(client, [f"who is there? {number}" for number in range(20)])  # they find out

    storm = time.monotonic()
    outputs = ask_all(client, ["a known question" if number % 2 else f"new {number}" for number in range(RUNS)])
    took_s = time.monotonic() - storm
    cached, static = outputs[1::2], outputs[::2]
    assert {(one["level"], one["answer"], one["endpoint"]) for one in cached} == {("L2", known["answer"], "first")}
    assert all(one["cached_at"] and one["age_s"] >= 0 and one["reasons"] for one in cached)
    assert {(one["level"], one["answer"], one["endpoint"]) for one in static} == {("L4", "Nobody is in.", "static")}
    assert not any(one["could_not_act"] for one in outputs)
    probes = 2 * PROBES * (took_s / OPEN_S + 1) + took_s + 2
    assert models.asked_since(storm) <= probes, "probes, and one call a second to the last model"

    asked_s = time.monotonic() - died
    models.return_all()
    returned = time.monotonic()
    eventually(lambda: answers_at(client, "L0"), within_s=60)
    print(f"{models.asked_since(died)} requests in {asked_s:.1f} s, L0 after {time.monotonic() - returned:.1f} s")


def test_workers_say_at_their_start_what_their_models_share(fleet: BackgroundSupervisor) -> None:
    lines = fleet.around.run.log("worker-1").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    (told,) = {one["warning"] for one in events if one.get("event") == "llm.shared_fate"}
    assert told == "chain default: big and small fail together (failure domain 127.0.0.1)"


def test_a_task_that_must_act_says_that_it_could_not(client: FleetClient, models: Models) -> None:
    task = client.submit("ask.once", {"text": "warm up"})
    task.result(60)
    models.die()
    output = ask(client, "add 1 and 2", tools=["calculator"], must_act=True).result(60)
    assert (output["could_not_act"], output["level"]) == (True, "L4")
    assert output["answer"].startswith("I could not do what you asked: ")


def test_a_run_that_had_better_wait_gives_its_slot_back_and_goes_on_when_models_return(
    client: FleetClient, models: Models
) -> None:
    died = models.die()
    task = client.submit("ask.patient", {"text": "worth waiting for"})
    view = eventually(lambda: (one := task.status()).state == "waiting" and one)  # it wakes by itself
    assert view.waiting_for == {"kind": "retry"}
    assert (view.report or {})["input_tokens"] == 0, "nothing was paid"
    assert models.asked_since(died) > 0
    models.return_all()
    assert task.result(60) in ("first says: worth waiting for", "second says: worth waiting for")
    view = task.status()
    assert (view.attempt, view.repeated_steps) == (1, 0)
    assert view.steps[0].executions > 1
    assert ((view.report or {})["input_tokens"], (view.report or {})["output_tokens"]) == (11, 7)


def test_children_and_grandchildren_spend_what_remains_of_the_runs_budget(client: FleetClient, models: Models) -> None:
    before = time.monotonic()
    task = client.submit("ask.estate", {"heirs": 3, "questions": 4})
    with pytest.raises(TaskFailed):
        task.result(60)
    error = task.status().error or {}
    assert error["code"] == "budget_spent", error
    context = error["context"]
    assert (context["level"], context["name"]) == ("run", str(task.id))
    spent = SPENT * models.asked_since(before)
    assert BUDGET - 2 * SPENT <= spent <= BUDGET + 3 * SPENT, "never more than the calls in flight beyond it"
    kids = [client.status(one.id) for one in task.status().children]
    assert "failed" in {one.state for one in kids}


def test_mistakes_end_a_task_with_their_names_before_anything_is_sent(client: FleetClient, models: Models) -> None:
    with pytest.raises(PromptTooLong, match=r"field 'message' of agent 'chat' has about 5000 tokens, .* takes 4000"):
        ask(client, "word " * 4000)
    codes = {}
    for what, inputs in {"long": {"text": "word " * 4000}, "model": {"text": "never asked", "model": "bgi"}}.items():
        task = client.submit("ask.once", inputs)
        with pytest.raises(TaskFailed):
            task.result(60)
        codes[what] = (task.status().error or {})["code"]
    assert codes == {"long": PromptTooLong.code, "model": BadInput.code}
    assert [models.asked(text) for text in ("word " * 4000, "never asked")] == [0, 0]


def test_operators_see_the_models_and_switch_them_under_running_workers(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    env = {name: fleet.env[name] for name in ("FLEET_DB_URL", "FLEET_BROKER_URL", "FLEET_MEMORY_REDIS_URL")}
    eventually(lambda: answers_at(client, "L0"), within_s=60)

    def calls_today() -> Any:  # on either day, should midnight pass
        answers_at(client, "L0")
        return sum(one["spent_today"]["calls"] for one in fleet_json("llm", "status", env=env)["models"]) > 0

    eventually(calls_today, within_s=120)  # a command takes seconds to start
    assert typed("llm", "open", "first", "--reason", "a drill", env=env).returncode == 0
    eventually(lambda: answers_at(client, "L1"), within_s=60)
    (first, second) = fleet_json("llm", "status", env=env)["models"]
    assert (first["state"], first["reason"], second["state"]) == ("forced-open", "a drill", "closed")
    assert typed("llm", "close", "first", env=env).returncode == 0
    eventually(lambda: answers_at(client, "L0"), within_s=60)


def test_a_workers_metrics_tell_levels_calls_and_breakers(second_worker: OwnWorker, client: FleetClient) -> None:
    def has_answered() -> bool:
        ask_all(client, [f"for the metrics {number}" for number in range(12)])
        return second_worker.metric("fleet_llm_answers_total", 'level="L0"') > 0

    eventually(has_answered)
    eventually(lambda: second_worker.metric("fleet_llm_breaker_state", 'state="closed"') == 2)
    assert second_worker.metric("fleet_llm_calls_total", 'kind="ok"') > 0
    assert second_worker.metric("fleet_llm_cost_total") > 0


def test_an_answer_that_is_in_the_journal_is_not_asked_for_again_when_the_worker_is_killed(
    fleet: BackgroundSupervisor, client: FleetClient, models: Models, run_folder: Callable[[], Path]
) -> None:
    runs, killed = 20, run_folder().parent / "killed"
    tasks = [client.submit("ask.twice", {"number": number, "until": str(killed)}) for number in range(runs)]

    def has_first(task_id: UUID) -> bool:
        return any(step.name == "chat" and step.state == "done" for step in client.status(task_id).steps)

    eventually(lambda: all(has_first(task.id) for task in tasks))
    fleet.suspend("worker-1")
    fleet.kill("worker-1", signal.SIGKILL)
    killed.touch()
    outputs = [task.result(60) for task in tasks]
    fleet.resume("worker-1")
    views = [task.status() for task in tasks]
    assert [one[0].partition(": ")[2] for one in outputs] == [f"first of {number}" for number in range(runs)]
    assert sum(view.attempt > 1 for view in views) > 0, "some were on the worker that was killed"
    assert {models.asked(f"first of {number}") for number in range(runs)} == {1}
    doubts = sum(view.in_doubt_steps for view in views)
    assert runs <= sum(models.asked(f"second of {number}") for number in range(runs)) <= runs + doubts
    assert sum(view.repeated_steps for view in views) == 0
    assert all((view.report or {})["input_tokens"] == 22 for view in views)


def test_a_worker_does_not_start_with_a_wrong_file_or_an_endpoint_that_speaks_another_dialect(
    models: Models, run_folder: Callable[[], Path]
) -> None:
    text, folder = models.file.read_text(), run_folder().parent
    typo = text.replace("small]", "smal]")
    told = {
        typo: "{file}, line 13, chains.default[1]: no model is named smal; did you mean small?",
        text: "endpoint first does not speak openai: {host} answers 404: that path is unknown there; "
        "check base_url (with its version path) and dialect",
    }
    models.first.speaks = False
    started = [worker_with(said, folder / f"llm-{number}.yaml") for number, said in enumerate(told)]
    said = [worker.communicate(timeout=180) for worker in started]
    models.first.speaks = True
    names = {"host": models.first.base_url[7:-3]}
    for number, words in enumerate(told.values()):
        assert started[number].returncode == 1
        sentence = words.format(file=folder / f"llm-{number}.yaml", **names)
        assert f"fleet worker: {sentence}\n" in said[number][1]
        assert "Traceback" not in said[number][1]


def test_a_fleet_is_not_started_with_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    done = typed("up", "--dir", str(tmp_path), env={"FLEET_LLM_CONFIG": "/nowhere/llm.yaml"})
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "FLEET_LLM_CONFIG: /nowhere/llm.yaml cannot be read: No such file" in done.stderr


def worker_with(text: str, file: Path) -> "subprocess.Popen[str]":
    """A worker with this configuration of models."""
    file.write_text(text)
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "workers.agents.main", "worker"],
        cwd=ROOT, env={**env, "FLEET_LLM_CONFIG": str(file)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
