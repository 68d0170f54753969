"""The chat agent in a real fleet: notes from a real vector store, a conversation in Redis and PostgreSQL."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from redis import Redis

from shared.client import FleetClient, SubmittedTask
from tests.fakes.chat_server import ChatServer
from tests.integration.fleets import UNHURRIED, StartFleet, client_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def model() -> Iterator[ChatServer]:
    """An OpenAI-compatible server on a loop of its own in this process; answers a question after a moment."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ChatServer(delay_s=0.2)
    asyncio.run_coroutine_threadsafe(server.open(), loop).result(60)
    yield server
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet, model: ChatServer) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1, more={"FLEET_LLM_BASE_URL": model.base_url, **UNHURRIED}, with_vectors=True) as started:
        yield started


@pytest.fixture(scope="module")
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    """A producer, once the worker has loaded the built-in corpus."""
    client = client_of(fleet)
    eventually(lambda: client.submit("chat", {"message": "a worker"}).result(60)["sources"], within_s=120)
    yield client
    client.close()


@pytest.fixture
def session() -> str:
    return f"s-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def redis(fleet: BackgroundSupervisor) -> Iterator[Redis]:
    with Redis.from_url(fleet.env["FLEET_MEMORY_REDIS_URL"]) as redis:
        yield redis


def ask(client: FleetClient, message: str, session: str | None = None, **inputs: Any) -> SubmittedTask:
    return client.submit("chat", {"message": message, **inputs}, session=session)


def stored(fleet: BackgroundSupervisor, session: str) -> list[tuple[str, str]]:
    """The conversation as PostgreSQL has it."""
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        query = "SELECT role, content FROM messages WHERE tenant = 'default' AND session_id = %s ORDER BY id"
        return [(role, content) for role, content in connection.execute(query, (session,))]


def seen(model: ChatServer, message: str) -> list[dict[str, Any]]:
    """What the model was told when it was asked this."""
    (request,) = [one for one in model.requests if one["messages"][-1]["content"] == message]
    turns: list[dict[str, Any]] = request["messages"]
    return turns


def test_an_answer_carries_its_sources_and_the_model_read_their_notes(client: FleetClient, model: ChatServer) -> None:
    task = ask(client, "What happens when a worker crashes in the middle?")
    answer = task.result(60)
    assert (answer["answer"], answer["level"], answer["reasons"]) == ("hello", "L0", [])
    assert "when-a-worker-crashes.md" in " ".join(answer["sources"])
    assert "Notes:\n- " in seen(model, "What happens when a worker crashes in the middle?")[0]["content"]
    view = task.status()
    assert view.report is not None
    assert (view.report["level"], view.report["input_tokens"], view.report["output_tokens"]) == ("L0", 11, 7)
    assert [(step.name, step.state) for step in view.steps] == [("retrieve", "done"), ("chat", "done")]


def test_the_second_message_carries_the_first_as_history(client: FleetClient, model: ChatServer, session: str) -> None:
    ask(client, "my name is Ada", session).result(60)
    ask(client, f"who am I, {session}?", session).result(60)
    assert seen(model, f"who am I, {session}?")[1:] == [
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": f"who am I, {session}?"},
    ]


def test_a_conversation_is_truth_in_postgresql_and_context_in_redis_for_an_hour_at_most(
    client: FleetClient, fleet: BackgroundSupervisor, redis: Redis, session: str
) -> None:
    ask(client, "remember this", session).result(60)
    assert stored(fleet, session) == [("user", "remember this"), ("assistant", "hello")]
    assert 0 < redis.ttl(f"ctx:{session}") <= 3600
    assert b"remember this" in b"".join(redis.zrange(f"ctx:{session}", 0, -1))  # type: ignore[arg-type]


def test_two_messages_of_one_session_at_the_same_time_lose_nothing(
    client: FleetClient, fleet: BackgroundSupervisor, model: ChatServer, redis: Redis, session: str
) -> None:
    said = [f"{session} says {number}" for number in range(2)]
    with ThreadPoolExecutor(2) as both:
        tasks = list(both.map(lambda message: ask(client, message, session), said))
    assert [task.result(60)["answer"] for task in tasks] == ["hello", "hello"]
    kept = stored(fleet, session)
    assert sorted(kept) == [("assistant", "hello")] * 2 + [("user", message) for message in said]
    ask(client, f"{session} goes on", session).result(60)
    history = [(turn["role"], turn["content"]) for turn in seen(model, f"{session} goes on")[1:-1]]
    assert history == kept
    assert redis.zcard(f"ctx:{session}") == 6 + 1, "three questions, three answers, and the mark of completeness"


def test_a_session_goes_on_after_redis_has_forgotten_it(
    client: FleetClient, model: ChatServer, redis: Redis, session: str
) -> None:
    ask(client, "before", session).result(60)
    assert redis.delete(f"ctx:{session}") == 1
    ask(client, f"after, {session}", session).result(60)
    assert [turn["content"] for turn in seen(model, f"after, {session}")[1:]] == [
        "before",
        "hello",
        f"after, {session}",
    ]


def test_without_the_vector_store_the_answer_says_that_it_is_plain_conversation(
    client: FleetClient, fleet: BackgroundSupervisor
) -> None:
    fleet.suspend("vectors")
    fleet.kill("vectors")
    answer = ask(client, "What happens when a worker crashes?").result(60)
    assert (answer["answer"], answer["level"], answer["sources"]) == ("hello", "L3", [])
    assert answer["reasons"][-1] == "retrieval is unavailable: plain conversation"
    fleet.resume("vectors")
    fleet.start("vectors")
    fleet.wait_ready("vectors")

    def is_back() -> bool:
        return bool(ask(client, "What happens when a worker crashes?").result(60)["level"] == "L0")

    eventually(is_back, within_s=60)
