"""Cancelling what runs, with the HTTP request in flight aborted and its cost in the books."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.client import FleetClient
from shared.errors import TaskCancelled
from tests.fakes.chat_server import ChatServer
from tests.integration.fleets import QUICK, WAITING, StartFleet
from tests.integration.live import eventually
from tests.integration.terminal import fleet_json
from workers.ops.background import BackgroundSupervisor

PRICED = """\
version: 1
endpoints: {slow: {base_url: SLOW}}
models: {slow: {endpoint: slow, price: {input_per_million: 1000, output_per_million: 2000}}}
chains: {default: [slow]}
"""


class Model:
    """A chat server on a thread of its own that takes an hour to answer."""

    def __init__(self, server: ChatServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._loop = loop

    def hung_up(self) -> int:
        """Which request's client left, counted from 1."""

        async def first() -> int:
            async with asyncio.timeout(30):
                return await self.server.hang_ups.get()

        heard: Future[int] = asyncio.run_coroutine_threadsafe(first(), self._loop)
        return heard.result()


@contextmanager
def slow_model() -> Iterator[Model]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ChatServer(delay_s=3600)
    try:
        asyncio.run_coroutine_threadsafe(server.open(), loop).result()
        yield Model(server, loop)
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with slow_model() as started:
        yield started


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet, model: Model, run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    file = run_folder().parent / "llm.yaml"
    file.write_text(PRICED.replace("SLOW", model.server.base_url))
    more = {**QUICK, **WAITING, "FLEET_LLM_CONFIG": str(file)}
    with start_fleet(1, more=more) as started:
        yield started


def test_a_run_that_asks_the_model_is_cancelled_and_the_request_is_aborted_and_booked(
    model: Model, client: FleetClient
) -> None:
    task = client.submit("test.ask", {"text": "a" * 400})
    eventually(lambda: model.server.requests)
    client.cancel(task.id)
    eventually(lambda: task.status().is_finished)
    assert model.hung_up() == 1, "the provider saw the client leave"
    view = task.status()
    assert (view.state, (view.error or {})["code"]) == ("cancelled", "task_cancelled")
    (step,) = view.steps
    assert (step.state, step.in_doubt, view.in_doubt_steps) == ("failed", 0, 0)
    assert step.usage is not None
    assert step.usage["estimated"] is True
    assert step.usage["input_tokens"] >= 100
    assert (view.report or {})["input_tokens"] == step.usage["input_tokens"]
    assert (view.report or {})["cost"] == step.usage["cost"] == step.usage["input_tokens"] / 1000
    with pytest.raises(TaskCancelled):
        task.result(1)


def test_what_a_cut_off_question_has_cost_is_told_among_the_dead_letters(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    task = client.submit("test.ask", {"text": "a" * 400}, deadline_s=8)  # it has to be asking by then
    eventually(lambda: task.status().is_finished)
    letter = fleet_json("dead", "show", str(task.id), env=fleet.env)
    assert letter["error"]["code"] == "deadline_spent"
    assert letter["paid"]["cost"] >= 0.1
    assert letter["paid"]["calls"] == 1


def test_an_agent_that_does_not_take_no_for_an_answer_begins_no_further_step(client: FleetClient, diary: Path) -> None:
    task = client.submit("test.stubborn", {"diary": str(diary)})
    eventually(diary.exists)
    client.cancel(task.id)
    eventually(lambda: task.status().is_finished)
    assert task.status().state == "cancelled"
    lines = diary.read_text()
    time.sleep(1)
    assert diary.read_text() == lines


def test_a_run_that_waits_in_its_place_is_cancelled(client: FleetClient) -> None:
    task = client.submit("test.sleep", {"seconds": 3600})
    eventually(lambda: task.status().state == "running")
    client.cancel(task.id)
    eventually(lambda: task.status().state == "cancelled")
