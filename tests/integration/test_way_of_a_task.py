"""The way of a task on real servers: from every kind of producer to the answer, and what is refused on the way."""

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from amqp import PreconditionFailed
from celery import Celery
from kombu import Connection, Queue

from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import dead_queue, task_queue
from shared.client import FleetClient
from shared.contracts import QUEUE
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import BadInput, ResultPending, TaskFailed, UnknownAgent, UnknownTask
from shared.ledger.roster import offered, workers_now
from tests.integration.fleets import StartFleet, client_of
from tests.integration.live import eventually, users_of
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1) as started:
        yield started


@pytest.fixture
def celery(fleet: BackgroundSupervisor) -> Iterator[Celery]:
    """A stock Celery client that knows nothing of the fleet but the broker and the queue's name."""
    app = Celery(broker=fleet.broker_url)
    app.conf.task_queues = [Queue(QUEUE, no_declare=True)]
    app.conf.task_default_queue = QUEUE
    yield app
    app.close()


def dead_letters(fleet: BackgroundSupervisor) -> list[dict[str, Any]]:
    return eventually(lambda: _dead_letters(fleet))  # type: ignore[no-any-return]


def _dead_letters(fleet: BackgroundSupervisor) -> list[dict[str, Any]]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        rows = connection.execute("DELETE FROM dead_letters RETURNING reason, headers, body").fetchall()
    return [{"reason": reason, "headers": headers, "body": body} for reason, headers, body in rows]


def publish_raw(
    fleet: BackgroundSupervisor, headers: dict[str, Any], body: bytes, content_type: str = "application/json"
) -> None:
    with Connection(fleet.broker_url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer().publish(
            body, exchange="", routing_key=QUEUE, headers=headers, content_type=content_type, content_encoding="utf-8"
        )


def test_a_submitted_task_is_claimed_run_and_answered_once(client: FleetClient) -> None:
    task = client.submit("test.echo", {"text": "hi", "times": 2}, session="s", tenant="acme")
    assert task.accepted_by == "ledger"
    assert task.result(30) == {"said": ["hi", "hi"], "attempt": 1, "tenant": "acme", "session": "s"}
    view = task.status()
    assert (view.state, view.attempt, view.epoch) == ("succeeded", 1, 1)
    assert [(step.name, step.state, step.executions, step.repeats) for step in view.steps] == [("say", "done", 1, 0)]


async def test_an_asyncio_service_submits_on_its_own_loop(fleet: BackgroundSupervisor) -> None:
    client = client_of(fleet)
    tasks = await asyncio.gather(*(client.asubmit("test.echo", {"text": str(n)}) for n in range(50)))
    outputs = await asyncio.gather(*(task.aresult(30) for task in tasks))
    assert [output["said"] for output in outputs] == [[str(n)] for n in range(50)]
    await client.aclose()
    client.close()


def test_any_celery_client_can_send_a_task_by_its_name(celery: Celery, client: FleetClient) -> None:
    sent = celery.send_task("agents.test.echo", kwargs={"text": "from celery"})
    assert client.result(sent.id, 30)["said"] == ["from celery"]
    positional = celery.send_task("agents.test.echo", args=["by place", 2])
    assert client.result(positional.id, 30)["said"] == ["by place", "by place"]


def test_the_same_idempotency_key_is_the_same_task(client: FleetClient) -> None:
    first = client.submit("test.echo", {"text": "one"}, idempotency_key="k", tenant="acme")
    again = client.submit("test.echo", {"text": "one"}, idempotency_key="k", tenant="acme", session="s")
    other = client.submit("test.echo", {"text": "two"}, idempotency_key="k", tenant="umbrella")
    assert first.id == again.id != other.id
    assert first.result(30)["said"] == ["one"]
    assert other.result(30)["said"] == ["two"]
    assert client.status(first.id).attempt == 1


def test_a_message_delivered_twice_runs_once(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    task_id = str(uuid.uuid4())
    body = json.dumps([[], {"text": "twice"}, None]).encode()
    for _ in range(5):
        publish_raw(fleet, {"task": "agents.test.echo", "id": task_id}, body)
    assert client.result(task_id, 30)["said"] == ["twice"]
    assert client.status(task_id).epoch == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "'text' is a required property"),
        ({"text": 5}, "field 'text'"),
        ({"text": "a", "txet": "b"}, "txet"),
    ],
)
def test_input_that_does_not_fit_is_refused_at_the_door(client: FleetClient, given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        client.submit("test.echo", given)


def test_an_unknown_agent_is_refused_and_the_known_ones_are_named(client: FleetClient) -> None:
    with pytest.raises(UnknownAgent, match=r"no worker offers an agent 'test.ehco'; there are: .*test\.echo"):
        client.submit("test.ehco", {"text": "a"})


@pytest.mark.parametrize(
    ("given", "told"),
    [({"text": object()}, "not JSON"), ({"text": float("nan")}, "not JSON"), ({"text": "a\x00b"}, r"U\+0000")],
)
def test_input_that_cannot_be_stored_is_refused(client: FleetClient, given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        client.submit("test.echo", given)


def test_bad_input_from_a_celery_client_fails_its_task_with_the_reason(celery: Celery, client: FleetClient) -> None:
    sent = celery.send_task("agents.test.order", kwargs={"item": "tea", "count": "many"})
    with pytest.raises(TaskFailed, match="count: input should be a valid integer"):
        client.result(sent.id, 30)
    assert client.submit("test.order", {"item": "tea", "count": 2}).result(30) == "2 x tea"


def test_what_an_agent_raises_is_the_tasks_recorded_error(client: FleetClient) -> None:
    with pytest.raises(TaskFailed, match="RuntimeError: no luck"):
        client.submit("test.fail", {"message": "no luck"}).result(30)


@pytest.mark.parametrize("agent", ["test.unstorable", "test.nul", "test.fail.nul"])
def test_an_output_that_cannot_be_stored_fails_the_task_and_no_other(client: FleetClient, agent: str) -> None:
    good = [client.submit("test.echo", {"text": "beside"}) for _ in range(5)]
    bad = client.submit(agent)
    with pytest.raises(TaskFailed):
        bad.result(30)
    assert [task.result(30)["said"] for task in good] == [["beside"]] * 5


def test_a_step_whose_result_cannot_be_stored_fails_by_its_name_and_is_not_in_doubt(client: FleetClient) -> None:
    task = client.submit("test.unstorable.step")
    with pytest.raises(TaskFailed, match="the result of step 'odd' is not JSON"):
        task.result(30)
    view = task.status()
    assert (view.error or {})["code"] == "bad_input"
    assert [(step.name, step.state) for step in view.steps] == [("odd", "failed")]
    assert view.in_doubt_steps == 0


def test_the_soft_limit_is_an_exception_inside_the_agent_and_the_hard_one_ends_it(client: FleetClient) -> None:
    soft, hard = client.submit("test.soft"), client.submit("test.hard")
    assert soft.result(30) == "cleaned up"
    with pytest.raises(TaskFailed, match="the hard time limit passed"):
        hard.result(30)


def test_blocking_code_runs_in_a_thread_and_tools_are_steps(client: FleetClient) -> None:
    assert client.submit("test.blocking").result(30) == 10
    task = client.submit("test.tool", {"number": 21})
    assert task.result(30) == 42
    assert [(step.name, step.kind) for step in task.status().steps] == [("tool.test.double", "tool")]


def test_a_deadline_that_passed_fails_the_task(client: FleetClient) -> None:
    with pytest.raises(TaskFailed, match="the deadline passed"):
        client.submit("test.sleep", {"seconds": 60}, deadline_s=0.5).result(30)


def test_a_result_that_is_not_ready_and_a_task_that_does_not_exist_are_told_apart(client: FleetClient) -> None:
    task = client.submit("test.sleep", {"seconds": 600})
    with pytest.raises(ResultPending):
        task.result(0.2)
    client.cancel(task.id)
    eventually(lambda: task.status().is_finished)
    with pytest.raises(UnknownTask):
        client.result(uuid.uuid4(), 0.1)


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        ({"fleet": {"version": 2}}, b"[[], {}, null]", "fleet.version"),
        ({"fleet": {"version": 1, "tenat": "x"}}, b"[[], {}, null]", "fleet.tenat"),
        ({"id": "42"}, b"[[], {}, null]", "id: input should be a valid UUID"),
        ({}, b"[[], {", "the body is not JSON"),
        ({}, b'{"text": "hi"}', "the body must be"),
        ({}, b"[[], {}]", "the body must be"),
        ({"task": "agents.nobody"}, b"[[], {}, null]", "no worker has a task named 'agents.nobody'"),
        ({"task": None}, b"[[], {}, null]", "no header 'task'"),
        ({}, b'[[], {"text": "a\\u0000"}, null]', "U+0000"),
        ({}, b'[[], {"text": "\\ud800"}, null]', "the input cannot be stored"),
        ({}, b'[[], {"text": "a", "times": NaN}, null]', "the input cannot be stored"),
        ({}, b"[" * 100_000, "the body is not JSON"),
    ],
)
def test_a_message_no_worker_can_read_is_dead_lettered_and_recorded(
    fleet: BackgroundSupervisor, client: FleetClient, headers: dict[str, Any], body: bytes, told: str
) -> None:
    publish_raw(fleet, {"task": "agents.test.echo", "id": str(uuid.uuid4()), **headers}, body)
    (letter,) = dead_letters(fleet)
    assert told in letter["reason"]
    assert letter["body"] == body.decode()
    assert client.submit("test.echo", {"text": "alive"}).result(30)["said"] == ["alive"]


def test_a_pickle_is_never_opened(fleet: BackgroundSupervisor) -> None:
    headers = {"task": "agents.test.echo", "id": str(uuid.uuid4())}
    publish_raw(fleet, headers, b"\x80\x04N.", content_type="application/x-python-serialize")
    (letter,) = dead_letters(fleet)
    assert "the body is not JSON" in letter["reason"]


@pytest.mark.parametrize("queue", [task_queue(BrokerKnobs()), dead_queue()], ids=lambda queue: queue.name)
def test_the_queues_are_quorum_queues(fleet: BackgroundSupervisor, queue: Queue) -> None:
    arguments = {**queue.queue_arguments, "x-queue-type": "classic"}
    with Connection(fleet.broker_url) as connection, pytest.raises(PreconditionFailed, match=r"x-queue-type.*'quorum'"):
        connection.channel().queue_declare(queue.name, durable=True, auto_delete=False, arguments=arguments)


def test_inputs_never_reach_celerys_events(celery: Celery) -> None:
    seen: list[dict[str, Any]] = []
    secret = uuid.uuid4().hex

    def has_seen_all() -> bool:
        celery.send_task("agents.test.echo", kwargs={"text": secret})
        return {"task-received", "task-started", "task-succeeded"} <= {event["type"] for event in seen}

    with celery.connection() as connection:
        receiver = celery.events.Receiver(connection, handlers={"*": seen.append})
        listening = threading.Thread(target=lambda: receiver.capture(wakeup=False))
        listening.start()
        eventually(has_seen_all)
        receiver.should_stop = True
        celery.send_task("agents.test.echo", kwargs={"text": secret})
        listening.join()
    assert secret not in json.dumps(seen, default=str)


def test_celery_inspect_and_control_answer(fleet: BackgroundSupervisor, celery: Celery, client: FleetClient) -> None:
    task = client.submit("test.sleep", {"seconds": 600})
    inspect = celery.control.inspect(timeout=30, limit=1)
    eventually(lambda: str(task.id) in [t["id"] for ts in (inspect.active() or {}).values() for t in ts])
    assert [list(answer.values()) for answer in celery.control.ping(timeout=30, limit=1)] == [[{"ok": "pong"}]]
    # Those of the test before may still be ending.
    eventually(lambda: [told["pool"]["in-flight"] for told in (inspect.stats() or {}).values()] == [1])
    (registered,) = (inspect.registered() or {}).values()
    assert "agents.chat" in registered
    celery.control.revoke(str(task.id), terminate=True)
    with pytest.raises(TaskFailed, match="revoked by an operator"):
        task.result(30)


def test_no_process_of_the_full_profile_is_privileged(
    servers: BackgroundSupervisor, fleet: BackgroundSupervisor
) -> None:
    for site in (servers, fleet):
        for spec in site.topology.specs:
            assert 0 not in users_of(site.pid(spec.name)), spec.name


async def test_the_ledger_knows_the_worker_and_its_agents(fleet: BackgroundSupervisor) -> None:
    database = Database(DbKnobs(url=fleet.db_url))
    (worker,) = await workers_now(database)
    assert (worker["state"], worker["slots"]) == ("alive", 200)
    assert {"chat", "test.echo"} <= set(await offered(database))
    await database.close()
