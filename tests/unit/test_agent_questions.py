"""What a run asks of models: whom it asks for, at which level it was answered, and what of that is kept."""

from typing import Any
from uuid import uuid4

import pytest

from shared.errors import BudgetSpent, LLMRefused, Misconfigured, RetryLater, Transient
from shared.ledger.ancestry import Ancestor
from shared.ledger.suspension import Suspended
from shared.llm.call_context import CallContext, Forebear
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolCall, Usage
from tests.fakes.fake_plane import PlaneWorld
from tests.fakes.fake_world import FakeWorld
from workers.agents.agent import AGENTS, TOOLS, agent, tool
from workers.agents.questions import Door
from workers.agents.registration import load_agents
from workers.agents.run import MOST_REASONS, Degradation, Run

load_agents(["workers.agents.chat"])
BACKUP: dict[str, Any] = {"level": "L1", "reasons": ("big: it hung up",), "endpoint": "second", "cost": 0.25}
CACHED: dict[str, Any] = {
    "level": "L2", "reasons": ("no model is up",), "cached_at": "2027-01-01T00:00:00+00:00", "age_s": 7.0, "cost": 0.0,
}  # fmt: skip
SORRY: dict[str, Any] = {"level": "L4", "reasons": ("no model is up",), "endpoint": "static", "could_not_act": True}


def said(text: str = "hello", **facts: Any) -> ChatReply:
    plain: dict[str, Any] = {
        "tool_calls": (), "model": "m", "endpoint": "first", "usage": Usage(11, 7), "finish_reason": "stop",
        "seconds": 0.1,
    }  # fmt: skip
    return ChatReply(text=text, **{**plain, **facts})


async def chat(world: FakeWorld, run: Run | None = None, **inputs: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await world.execute(run or world.run(), "chat", {"message": "hi", "passages": 0, **inputs})
    return answer


async def test_the_report_tells_level_reasons_endpoint_and_cost_and_a_replay_tells_the_same() -> None:
    world, task = FakeWorld(said(cost=0.5), said(**BACKUP)), uuid4()
    reports = []
    for attempt in (1, 2):
        run = world.run(task, attempt=attempt)
        assert [(await run.chat("one")).level, (await run.chat("two")).level] == ["L0", "L1"]
        reports.append({name: value for name, value in run.report().items() if not name.startswith("steps_")})
    assert reports[0] == reports[1]
    told = ("level", "reasons", "endpoint", "model", "cost", "input_tokens", "output_tokens")
    assert [reports[0][name] for name in told] == ["L1", ["big: it hung up"], "second", "m", 0.75, 22, 14]
    assert len(world.chat.requests) == 2


async def test_a_run_that_asked_nobody_reports_no_model() -> None:
    assert {"endpoint", "model", "cost", "could_not_act", "age_s"}.isdisjoint(FakeWorld().run().report())


async def test_an_answer_from_the_cache_comes_with_its_age() -> None:
    world = FakeWorld(said(**CACHED))
    run = world.run()
    await run.chat("why?")
    report = run.report()
    assert (report["level"], report["cached_at"], report["age_s"]) == ("L2", CACHED["cached_at"], 7.0)


def test_reasons_are_told_once_each_and_not_without_end() -> None:
    degradation = Degradation()
    for number in range(100):
        degradation.note("L1", "the same", f"another {number // 2}")
    assert degradation.reasons[:3] == ["the same", "another 0", "another 1"]
    assert len(degradation.reasons) == MOST_REASONS


async def test_models_are_asked_on_behalf_of_the_agent_its_tenant_and_its_run() -> None:
    world, task = FakeWorld(), uuid4()
    run = world.run(task, agent="a", tenant="acme", must_act=True)
    await run.chat("why?")
    (context,) = world.chat.contexts
    assert context == CallContext(tenant="acme", agent="a", run=str(task), must_act=True)
    run.must_act = False
    assert not run.must_act


async def test_answers_are_kept_apart_by_conversation_and_by_the_agent_that_began_it_all() -> None:
    world = FakeWorld()
    await world.run(session="eve's", root_agent="clerk").chat("why?")
    (context,) = world.chat.contexts
    assert (context.user, context.scope) == ("eve's", "clerk")
    plane = PlaneWorld(more="agents: {chat: {cache: degraded}}")
    question = ChatRequest((Message("user", "What is my balance?"),))
    eves = await plane.chat(question, user="eve's", scope="clerk")
    await plane.plane.settled()
    plane.all_down()
    levels = {}
    for user, scope in (("eve's", "clerk"), ("bob's", "clerk"), ("eve's", "guest"), ("", "")):
        reply = await plane.chat(question, user=user, scope=scope)
        levels[user, scope] = (reply.level, reply.text == eves.text)
    assert levels.pop(("eve's", "clerk")) == ("L2", True)
    assert set(levels.values()) == {("L4", False)}


async def test_a_child_draws_on_the_budgets_of_the_runs_above_it_which_are_looked_up_once() -> None:
    world, task, parent, root = FakeWorld(), uuid4(), uuid4(), uuid4()
    run = world.run(task, parent_id=parent)
    await run.chat("why?")
    assert world.runs(task).looks == 0, "no run has a budget"

    object.__setattr__(world.ports, "has_run_budgets", True)
    await world.run(uuid4()).chat("why?")
    assert not world.chat.contexts[-1].forebears, "nobody is above it"

    run = world.run(task, attempt=2, parent_id=parent)
    world.runs(task).above = (Ancestor(parent, "middle"), Ancestor(root, "top"))
    assert (await run.chat("why?")).text and world.runs(task).looks == 0, "it was in the journal"
    await run.chat("and why?")
    await run.chat("and then?")
    assert world.chat.contexts[-1].forebears == (Forebear("middle", str(parent)), Forebear("top", str(root)))
    assert world.runs(task).looks == 1


def test_a_door_draws_on_its_own_budgets_and_on_those_of_the_runs_above() -> None:
    world = PlaneWorld(more="agents: {top: {run_budget: {tokens: 100}}, a: {run_budget: {tokens: 50}, must_act: true}}")
    door: Door = world.door(agent="a", run="r", forebears=(Forebear("middle", "m"), Forebear("top", "t")))
    budgets = [
        (one.level, one.name, one.tokens)
        for one in world.door(agent="a", run="r", forebears=(Forebear("top", "t"),)).budgets
    ]
    assert budgets == [("run", "r", 50), ("run", "t", 100)]
    assert door.must_act and not world.door(agent="b").must_act and not world.door(agent="a", must_act=False).must_act
    assert door.sorry("it rains") == "I could not do what you asked: it rains. Nothing was changed."


async def test_a_run_that_is_told_to_come_back_later_leaves_its_slot_and_has_paid_nothing() -> None:
    world, task = FakeWorld(RetryLater("all are busy", retry_after_s=60), "hello"), uuid4()
    with pytest.raises(Suspended):
        await world.run(task).chat("why?")
    step = world.ledger[task].steps["chat", 0]
    assert (step["state"], step["wait_s"], step.get("usage")) == ("waiting", 60, None)
    step["wait_s"] = 0
    assert (await world.run(task, attempt=2).chat("why?")).text == "hello"


@pytest.mark.parametrize("error", [BudgetSpent("spent", level="run"), LLMRefused("no")])
async def test_what_cannot_be_answered_ends_as_its_error_in_every_attempt(error: Exception) -> None:
    world, task = FakeWorld(error), uuid4()  # type: ignore[arg-type]
    for attempt in (1, 2):
        with pytest.raises(type(error)):
            await world.run(task, attempt=attempt).chat("why?")
    assert len(world.chat.requests) == 1


async def test_the_chat_agent_passes_on_who_answered_at_which_level() -> None:
    answer = await chat(FakeWorld(said(**BACKUP)))
    assert (answer["level"], answer["reasons"], answer["endpoint"]) == ("L1", ["big: it hung up"], "second")
    answer = await chat(FakeWorld(said(**CACHED)))
    assert (answer["level"], answer["cached_at"], answer["age_s"]) == ("L2", CACHED["cached_at"], 7.0)


@pytest.mark.parametrize(("reply", "turns"), [(said(), 2), (said(**CACHED), 2), (said(**SORRY), 0)])
async def test_apologies_are_no_part_of_a_conversation(reply: ChatReply, turns: int) -> None:
    world = FakeWorld(reply)
    await chat(world, world.run(session="s"))
    assert len(world.truth.rows) == turns


@pytest.fixture
def door_tools() -> Any:
    """A tool that works and one whose service is away."""

    def opens(name: str) -> str:
        """Open a door."""
        return f"{name} is open"

    def away(name: str) -> str:
        """Close a door."""
        raise Transient("the door service does not answer")

    tool("t.open")(opens)
    tool("t.close")(away)
    yield ["t.open", "t.close"]
    del TOOLS["t.open"], TOOLS["t.close"]


def calls(*names: str) -> ChatReply:
    tool_calls = tuple(ToolCall(f"c{number}", name, '{"name": "front"}') for number, name in enumerate(names))
    return said("", tool_calls=tool_calls, finish_reason="tool_calls")


async def test_without_its_tools_the_agent_converses_and_says_so(door_tools: list[str]) -> None:
    world = FakeWorld(calls("t.close", "t.open"), "I cannot reach the door")
    answer = await chat(world, tools=door_tools)
    assert (answer["answer"], answer["level"], answer["could_not_act"]) == ("I cannot reach the door", "L3", False)
    assert answer["reasons"] == [
        "tool t.close: the door service does not answer", "tools are unavailable: plain conversation",
    ]  # fmt: skip
    assert world.chat.requests[-1].tools == ()
    told = [turn.content for turn in world.chat.requests[-1].messages if turn.role == "tool"]
    assert told == ['{"error": "the door service does not answer"}', '{"error": "tools are unavailable"}']


async def test_a_task_that_must_act_and_cannot_never_becomes_a_conversation(door_tools: list[str]) -> None:
    world = FakeWorld(calls("t.close"))
    run = world.run()
    answer = await chat(world, run, tools=door_tools, must_act=True)
    assert (answer["could_not_act"], answer["level"]) == (True, "L3")
    assert answer["answer"] == "could not: tool t.close: the door service does not answer"
    assert run.report()["could_not_act"] is True
    assert len(world.chat.requests) == 1


async def test_what_was_done_before_it_could_not_go_on_is_told_and_remembered(door_tools: list[str]) -> None:
    for then in (calls("t.close"), said("nothing was changed", **SORRY)):
        world = FakeWorld(calls("t.open"), then)
        answer = await chat(world, world.run(session="s"), tools=door_tools, must_act=True)
        assert answer["could_not_act"] is True
        assert answer["answer"].endswith("Done before: t.open.")
        assert len(world.truth.rows) == 2


def test_an_agent_offers_how_long_a_prompt_its_models_take() -> None:
    one = AGENTS["chat"]
    assert one.offered(prompt_tokens=None) == one.inputs.schema()
    offered = one.offered(prompt_tokens=4000)
    assert offered["properties"]["message"]["x-prompt-tokens"] == 4000
    assert "x-prompt-tokens" not in one.inputs.schema()["properties"]["message"]
    with pytest.raises(Misconfigured, match="agent 'p': prompt must be one of its inputs: text"):

        @agent("p", prompt="txt")
        async def p(run: Run, text: str) -> None: ...
