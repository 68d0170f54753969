"""What an agent can do, in a world of fakes: everything that costs something is paid for once."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from shared.errors import BadInput, LLMTimeout, VectorsUnavailable
from shared.ledger.suspension import Suspended
from shared.llm.messages import Message
from tests.fakes.fake_world import FakeWorld
from workers.agents.agent import TOOLS, tool
from workers.agents.run import Degradation

CALLS: list[object] = []


class Place(BaseModel):
    """One model as a tool's input."""

    city: str


def weather(place: Place) -> str:
    """Tell the weather."""
    CALLS.append(place)
    return f"rain in {place.city}"


async def double(number: int) -> int:
    """Double a number."""
    CALLS.append(number)
    return number * 2


def broken(number: int) -> int:
    """Fail."""
    CALLS.append(number)
    raise ConnectionError("no route")


@pytest.fixture(autouse=True)
def tools() -> Iterator[None]:
    CALLS.clear()
    for function in (weather, double, broken):
        tool(f"t.{function.__name__}")(function)
    yield
    for name in ("t.weather", "t.double", "t.broken"):
        del TOOLS[name]


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


async def test_a_blocking_step_runs_in_a_thread_and_an_async_one_on_the_loop(world: FakeWorld) -> None:
    async def here() -> int:
        return threading.get_ident()

    run = world.run()
    assert await run.step("here", here) == threading.get_ident()
    assert await run.step("there", threading.get_ident) != threading.get_ident()
    assert await run.step("wrapped", lambda: here()) == threading.get_ident()


async def test_a_step_of_a_resumed_run_comes_from_the_journal(world: FakeWorld) -> None:
    task = uuid4()
    assert await world.run(task).step("double", double, 4) == 8
    resumed = world.run(task, attempt=2)
    assert await resumed.step("double", double, 4) == 8
    assert CALLS == [4]
    changed = world.run(task, attempt=2)
    with pytest.raises(Suspended):
        await changed.step("double", double, 5)
    assert CALLS == [4]


async def test_arguments_and_results_of_a_step_must_be_json(world: FakeWorld) -> None:
    with pytest.raises(BadInput, match="the request of step 'a' is not JSON"):
        await world.run().step("a", str, object())
    with pytest.raises(BadInput, match="the result of step 'b' is not JSON"):
        await world.run().step("b", object)


async def test_a_question_reaches_the_model_with_its_system_prompt_tools_and_bounds(world: FakeWorld) -> None:
    run = world.run()
    reply = await run.chat("why?", system="Be brief.", model="m", max_tokens=5, temperature=0.5, tools=["t.double"])
    assert reply.text == "echo: why?"
    (request,) = world.chat.requests
    assert request.messages == (Message("system", "Be brief."), Message("user", "why?"))
    assert (request.model, request.max_tokens, request.temperature) == ("m", 5, 0.5)
    assert [(spec.name, spec.description, spec.parameters["required"]) for spec in request.tools] == [
        ("t.double", "Double a number.", ["number"])
    ]


async def test_a_model_is_paid_once_and_its_tokens_are_counted_in_every_attempt(world: FakeWorld) -> None:
    task, turns = uuid4(), [Message("user", "a" * 40)]
    first, resumed = world.run(task), world.run(task, attempt=2)
    reply = await first.chat(turns)
    resumed = world.run(task, attempt=2)
    assert await resumed.chat(turns) == reply
    assert len(world.chat.requests) == 1
    for run, executed in ((first, 1), (resumed, 0)):
        report = run.report()
        assert (report["input_tokens"], report["output_tokens"]) == (
            reply.usage.input_tokens,
            reply.usage.output_tokens,
        )
        assert (report["steps_executed"], report["steps_replayed"]) == (executed, 1 - executed)
    assert world.ledger[task].steps["chat", 0]["usage"] == reply.usage.to_json()


async def test_a_model_that_fails_is_the_agents_to_handle_in_the_same_way_by_every_attempt() -> None:
    world, task = FakeWorld(LLMTimeout("too late")), uuid4()
    for attempt in (1, 2):
        run = world.run(task, attempt=attempt)
        with pytest.raises(LLMTimeout, match="too late"):
            await run.chat("why?")
        assert (await run.chat("why?")).text == "echo: why?"
    assert len(world.chat.requests) == 2


async def test_an_unknown_tool_is_not_offered_to_the_model(world: FakeWorld) -> None:
    with pytest.raises(BadInput, match=r"no tool is named 'nope'; there are: .*t\.double"):
        await world.run().chat("why?", tools=["nope"])
    assert world.chat.requests == []


async def test_a_tool_runs_once_with_checked_inputs(world: FakeWorld) -> None:
    task = uuid4()
    for attempt in (1, 2):
        run = world.run(task, attempt=attempt)
        assert await run.tool("t.double", number="21") == 42
        assert await run.tool("t.weather", city="Oslo") == "rain in Oslo"
    assert [21, Place(city="Oslo")] == CALLS
    assert {key: row["kind"] for key, row in world.ledger[task].steps.items()} == {
        ("tool.t.double", 0): "tool",
        ("tool.t.weather", 0): "tool",
    }


async def test_a_models_input_called_retry_is_an_input_and_no_rule(world: FakeWorld) -> None:
    asked: dict[str, Any] = {"number": 1, "retry": {"attempts": 10**9}}
    with pytest.raises(BadInput, match=r"^tool 't.double': retry: extra inputs are not permitted"):
        await world.run().tool("t.double", **asked)


async def test_inputs_that_do_not_fit_a_tool_are_refused_before_anything_is_written(world: FakeWorld) -> None:
    task = uuid4()
    with pytest.raises(BadInput, match=r"^tool 't.double': number: input should be a valid integer"):
        await world.run(task).tool("t.double", number="x")
    with pytest.raises(BadInput, match=r"^no tool is named 't.nope'"):
        await world.run(task).tool("t.nope")
    assert (CALLS, world.ledger[task].history) == ([], [])


async def test_what_a_tool_raises_reaches_the_agent(world: FakeWorld) -> None:
    with pytest.raises(ConnectionError, match="no route"):
        await world.run().tool("t.broken", number=1)


async def test_passages_are_the_tenants_and_everyones_and_searched_once(world: FakeWorld) -> None:
    await world.knows("the sea is blue", tenant="acme")
    await world.knows("the sea is salty")
    task = uuid4()
    found = await world.run(task, tenant="acme").retrieve("the sea", k=5)
    assert {passage.text for passage in found} == {"the sea is blue", "the sea is salty"}
    asked = len(world.embedding.embedded)
    assert await world.run(task, attempt=2, tenant="acme").retrieve("the sea", k=5) == found
    assert len(world.embedding.embedded) == asked
    assert {one.text for one in await world.run(tenant="else").retrieve("the sea", k=5)} == {"the sea is salty"}


async def test_a_vector_store_that_is_down_is_an_error_of_its_own(world: FakeWorld) -> None:
    world.vectors.is_down = True
    with pytest.raises(VectorsUnavailable):
        await world.run().retrieve("the sea")


async def test_a_conversation_is_remembered_in_order_and_once_however_often_the_run_is_resumed(
    world: FakeWorld,
) -> None:
    task, said = uuid4(), [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    for attempt in (1, 2, 3):
        run = world.run(task, attempt=attempt, session="s")
        if attempt == 3:
            world.ledger[task].steps.clear()
            run = world.run(task, attempt=attempt, session="s")
        await run.remember(*said[:2])
        await run.remember(said[2])
    assert [row[2].message for row in world.truth.rows] == said
    assert await world.run(session="s").recall() == tuple(said)


async def test_a_resumed_run_recalls_what_the_first_attempt_saw(world: FakeWorld) -> None:
    task = uuid4()
    assert await world.run(task, session="s").recall() == ()
    await world.run(session="s").remember(Message("user", "meanwhile"))
    assert await world.run(task, attempt=2, session="s").recall() == ()
    assert len(await world.run(session="s").recall()) == 1


async def test_outside_a_conversation_nothing_is_recalled_remembered_or_written(world: FakeWorld) -> None:
    task = uuid4()
    run = world.run(task)
    assert await run.recall() == ()
    await run.remember(Message("user", "a"))
    assert (world.truth.rows, world.ledger[task].history) == ([], [])


async def test_two_tenants_sessions_of_one_name_are_two_conversations(world: FakeWorld) -> None:
    await world.run(session="s", tenant="a").remember(Message("user", "secret"))
    assert await world.run(session="s", tenant="b").recall() == ()


def test_the_worst_level_stays_with_every_reason() -> None:
    degradation = Degradation()
    degradation.note("L1", "other model")
    degradation.note("L3", "no vectors")
    degradation.note("L2", "cached")
    assert (degradation.level, degradation.reasons) == ("L3", ["other model", "no vectors", "cached"])
