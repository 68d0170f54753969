"""The chat agent from question to answer: history, notes, tools, and the level at which it answered."""

import json
from typing import Any
from uuid import uuid4

import pytest

from shared.errors import BadInput, Fenced, LLMUnavailable, ShardMoved
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall
from tests.fakes.fake_world import FakeWorld
from workers.agents.chat import MAX_TOOL_ROUNDS, SYSTEM
from workers.agents.registration import load_agents

load_agents(["workers.agents.chat", "workers.agents.tools"])


def calls(arguments: str, name: str = "calculator", call_id: str = "c1") -> ToolCall:
    return ToolCall(call_id, name, arguments)


async def ask(world: FakeWorld, message: str = "hi", *, session: str | None = None, **inputs: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await world.execute(world.run(session=session), "chat", {"message": message, **inputs})
    return answer


def told(world: FakeWorld, role: str) -> list[str]:
    """What the model was told by this role, in its last question."""
    return [turn.content for turn in world.chat.requests[-1].messages if turn.role == role]


async def test_a_question_gets_an_answer_at_full_service() -> None:
    world = FakeWorld("  hello!\n")
    assert await ask(world) == {
        "answer": "hello!",
        "level": "L0",
        "reasons": [],
        "endpoint": "fake",
        "model": "fake",
        "sources": [],
        "could_not_act": False,
    }
    (request,) = world.chat.requests
    assert request.messages == (Message("system", SYSTEM), Message("user", "hi"))
    assert request.max_tokens == 160
    assert request.tools == ()


async def test_notes_are_given_to_the_model_and_their_sources_to_the_reader() -> None:
    world = FakeWorld()
    await world.knows("a worker beats every 5 s", "a keeper buries", "cats sleep")
    answer = await ask(world, "how often beats a worker?", passages=1)
    assert answer["sources"] == ["1.md"]
    assert told(world, "system") == [SYSTEM + "\nNotes:\n- a worker beats every 5 s"]


async def test_an_answer_without_notes_does_not_search() -> None:
    world = FakeWorld()
    world.vectors.is_down = True
    assert (await ask(world, passages=0))["level"] == "L0"
    assert world.embedding.embedded == []


async def test_without_the_vector_store_the_answer_is_plain_conversation_and_says_so() -> None:
    world = FakeWorld("hello")
    world.vectors.is_down = True
    answer = await ask(world)
    assert (answer["answer"], answer["level"], answer["sources"]) == ("hello", "L3", [])
    assert answer["reasons"] == ["the fake is down", "retrieval is unavailable: plain conversation"]
    assert told(world, "system") == [SYSTEM]


async def test_the_second_message_of_a_session_carries_the_first_as_history() -> None:
    world = FakeWorld("I am fine", "You asked how I am")
    await ask(world, "how are you?", session="s")
    await ask(world, "what did I ask?", session="s")
    assert [(turn.role, turn.content) for turn in world.chat.requests[-1].messages[1:]] == [
        ("user", "how are you?"),
        ("assistant", "I am fine"),
        ("user", "what did I ask?"),
    ]
    assert [row[2].message.content for row in world.truth.rows][2:] == ["what did I ask?", "You asked how I am"]


async def test_of_a_session_on_another_shard_no_model_is_asked_even_when_it_is_cached() -> None:
    world = FakeWorld(is_sharded=True)
    await ask(world, "one", session="s")
    await ask(world, "two", session="s")
    world.truth.away.add("s")
    with pytest.raises(ShardMoved, match="session 's' is on another shard"):
        await ask(world, "three", session="s")
    assert told(world, "user") == ["one", "two"]


async def test_a_conversation_survives_a_cache_that_is_down() -> None:
    world = FakeWorld()
    world.cache.is_down = True
    await ask(world, "one", session="s")
    await ask(world, "two", session="s")
    assert told(world, "user") == ["one", "two"]


async def test_without_a_session_nothing_is_remembered() -> None:
    world = FakeWorld()
    await ask(world, "one")
    await ask(world, "two")
    assert told(world, "user") == ["two"]
    assert world.truth.rows == []


async def test_the_model_calls_a_tool_which_runs_once_and_its_result_leads_to_the_answer() -> None:
    world = FakeWorld(calls('{"expression": "6 * 7"}'), "It is 42")
    task = uuid4()
    run = world.run(task)
    answer = await world.execute(run, "chat", {"message": "6 * 7?", "tools": ["calculator"]})
    assert answer["answer"] == "It is 42"
    first, second = world.chat.requests
    assert [spec.name for spec in first.tools] == ["calculator"]
    assert second.messages[-2:] == (
        Message("assistant", "", tool_calls=(calls('{"expression": "6 * 7"}'),)),
        Message("tool", "42", tool_call_id="c1"),
    )
    assert [key for key in world.ledger[task].steps if key[0] == "tool.calculator"] == [("tool.calculator", 0)]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (calls("{}", name="nope"), "no tool is named 'nope'; there are: calculator"),
        (calls('{"expresion": "1"}'), "tool 'calculator': expression: field required"),
        (calls('{"expression": "1", "x": 2}'), "tool 'calculator': x: extra inputs are not permitted"),
        (calls('{"expression": "2 ** 9"}'), "expression: only numbers"),
        (calls('{"expression": '), "Expecting value"),
        (calls('["6 * 7"]'), "the arguments must be an object"),
        (calls(""), "tool 'calculator': expression: field required"),
    ],
)
async def test_the_models_mistakes_are_told_to_the_model(call: ToolCall, error: str) -> None:
    world = FakeWorld(call, "sorry")
    assert (await ask(world, tools=["calculator"]))["answer"] == "sorry"
    (told_to_model,) = told(world, "tool")
    assert error in json.loads(told_to_model)["error"]


async def test_a_model_that_only_ever_calls_tools_is_asked_once_more_without_them() -> None:
    world = FakeWorld(*(calls('{"expression": "1"}', call_id=str(n)) for n in range(MAX_TOOL_ROUNDS)), "at last")
    assert (await ask(world, tools=["calculator"]))["answer"] == "at last"
    assert [bool(request.tools) for request in world.chat.requests] == [True] * MAX_TOOL_ROUNDS + [False]


async def test_a_resumed_run_calls_nothing_again_and_gives_the_same_answer() -> None:
    world = FakeWorld(calls('{"expression": "6 * 7"}'), "It is 42")
    await world.knows("a worker beats every 5 s")
    task, inputs = uuid4(), {"message": "6 * 7?", "tools": ["calculator"]}
    first = await world.execute(world.run(task, session="s"), "chat", inputs)
    before = (len(world.chat.requests), len(world.embedding.embedded), len(world.truth.rows), world.truth.reads)
    resumed = world.run(task, attempt=2, session="s")
    assert await world.execute(resumed, "chat", inputs) == first
    after = (len(world.chat.requests), len(world.embedding.embedded), len(world.truth.rows), world.truth.reads)
    assert before == after
    report = resumed.report()
    assert (report["steps_executed"], report["steps_replayed"]) == (0, 6)


@pytest.mark.parametrize("completed", range(5))
async def test_a_run_resumed_after_any_step_pays_for_the_others_alone(completed: int) -> None:
    world = FakeWorld(calls('{"expression": "6 * 7"}'), "It is 42")
    task, inputs = uuid4(), {"message": "6 * 7?", "tools": ["calculator"]}
    first = await world.execute(world.run(task, session="s"), "chat", inputs)
    kept = list(world.ledger[task].steps.items())[:completed]
    world.ledger[task].steps = dict(kept)
    asked = sum(name == "chat" for (name, _), _ in kept)
    world.chat.script.extend((calls('{"expression": "6 * 7"}'), "It is 42")[asked:])
    world.truth.rows.clear()
    world.truth.numbers.clear()
    world.cache.wipe()
    resumed = world.run(task, attempt=2, session="s")
    assert await world.execute(resumed, "chat", inputs) == first
    assert (resumed.report()["steps_executed"], resumed.report()["steps_replayed"]) == (6 - completed, completed)


async def test_a_model_that_is_down_fails_the_task_and_leaves_no_half_of_a_conversation() -> None:
    world = FakeWorld(LLMUnavailable("down"))
    with pytest.raises(LLMUnavailable):
        await ask(world, session="s")
    assert world.truth.rows == []


@pytest.mark.parametrize(
    ("inputs", "told_field"),
    [
        ({}, "message: field required"),
        ({"message": ""}, "message: string should have at least 1 character"),
        ({"message": "hi", "passages": 21}, "passages: input should be less than or equal to 20"),
        ({"message": "hi", "max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"message": "hi", "colour": 1}, "colour: extra inputs are not permitted"),
        ({"message": "hi", "tools": ["nope"]}, "no tool is named 'nope'"),
    ],
)
async def test_a_producers_mistake_is_named_and_the_model_is_not_asked(inputs: dict[str, Any], told_field: str) -> None:
    world = FakeWorld()
    with pytest.raises(BadInput, match=told_field):
        await world.execute(world.run(), "chat", inputs)
    assert world.chat.requests == []


async def test_a_tool_that_the_producer_did_not_offer_is_not_run_whatever_the_model_calls() -> None:
    world = FakeWorld(calls("{}", name="clock"), "sorry")
    task = uuid4()
    await world.execute(world.run(task), "chat", {"message": "time?", "tools": ["calculator"]})
    assert "no tool is named 'clock'; there are: calculator" in told(world, "tool")[0]
    assert not [name for name, _ in world.ledger[task].steps if name.startswith("tool.")]


async def test_a_run_resumed_after_an_outage_of_the_vector_store_sees_the_outage_again_and_goes_on() -> None:
    world = FakeWorld("hello")
    await world.knows("hi there")
    world.vectors.is_down = True
    task, inputs = uuid4(), {"message": "hi"}
    first = await world.execute(world.run(task, session="s"), "chat", inputs)
    del world.ledger[task].steps["remember", 0]
    world.vectors.is_down = False
    assert await world.execute(world.run(task, attempt=2, session="s"), "chat", inputs) == first
    assert first["level"] == "L3"
    assert len(world.chat.requests) == 1


async def test_a_run_that_was_given_away_ends_at_its_tool_call() -> None:
    world = FakeWorld(calls('{"expression": "1"}'))
    task = uuid4()
    run = world.run(task)
    tell = world.chat.chat

    async def chat(request: ChatRequest) -> ChatReply:
        reply = await tell(request)
        world.ledger[task].fence_after(1)
        return reply

    world.chat.chat = chat  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        await world.execute(run, "chat", {"message": "1?", "tools": ["calculator"]})
    assert len(world.chat.requests) == 1
