"""From a signature to checked inputs, and what cannot be an agent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from shared.errors import BadInput, Misconfigured
from shared.ledger.retry import ONCE, Retry
from workers.agents.agent import AGENTS, TOOLS, Agent, agent, tool
from workers.agents.registration import load_agents


class Order(BaseModel):
    """One model as the whole input."""

    model_config = ConfigDict(extra="forbid")

    item: str
    count: Annotated[int, Field(ge=1)] = 1


@pytest.fixture(autouse=True)
def own_names() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    agents, tools = dict(AGENTS), dict(TOOLS)
    yield
    AGENTS.clear()
    AGENTS.update(agents)
    TOOLS.clear()
    TOOLS.update(tools)


def made(function: Any, **options: Any) -> Agent:
    agent("t", **options)(function)
    return AGENTS["t"]


async def greet(run: Any, name: str, times: int = 1, tags: list[str] | None = None) -> Any:
    return [run, name, times, tags]


async def buy(run: Any, order: Order) -> Any:
    return order


async def nothing(run: Any) -> str:
    return "done"


def test_the_function_stays_an_ordinary_function() -> None:
    assert agent("t", soft_limit_s=1, hard_limit_s=2)(greet) is greet
    one = AGENTS["t"]
    assert (one.name, one.function, one.soft_limit_s, one.hard_limit_s) == ("t", greet, 1, 2)


def test_an_agent_says_what_becomes_of_changed_steps_how_many_run_at_once_and_what_is_tried_again() -> None:
    plain = made(greet)
    assert (plain.on_change, plain.max_running, plain.retry) == ("pause", None, ONCE)
    rule = Retry(attempts=2)
    one = made(greet, on_change="reuse", max_running=3, retry=rule)
    assert (one.on_change, one.max_running, one.retry) == ("reuse", 3, rule)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"on_change": "ignore"}, "agent 't': on_change must be one of reuse, rerun, pause"),
        ({"max_running": 0}, "agent 't': max_running must be at least 1"),
    ],
)
def test_an_option_that_means_nothing_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(Misconfigured, match=told):
        agent("t", **options)(greet)
    assert "t" not in AGENTS


async def test_inputs_are_named_bound_by_place_and_defaulted() -> None:
    one = made(greet)
    assert await one("run", one.inputs.check((), {"name": "a"})) == ["run", "a", 1, None]
    assert await one("run", one.inputs.check(("a", 2), {"tags": ["x"]})) == ["run", "a", 2, ["x"]]


async def test_a_json_number_in_text_is_converted_as_pydantic_does() -> None:
    assert made(greet).inputs.check((), {"name": "a", "times": "3"})["times"] == 3


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((), {}, "agent 't': name: field required"),
        ((), {"name": 5}, "agent 't': name: input should be a valid string"),
        ((), {"name": "a", "times": "x"}, "agent 't': times: input should be a valid integer"),
        ((), {"name": "a", "tags": ["b", 1]}, "agent 't': tags.1: input should be a valid string"),
        ((), {"name": "a", "nmae": "b"}, "agent 't': nmae: extra inputs are not permitted"),
        (("a",), {"name": "b"}, "agent 't': name: given by place and by name"),
        (("a", 1, None, 4), {}, "agent 't' takes 3 inputs, got 4 positional ones"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_its_name(args: Any, kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as caught:
        made(greet).inputs.check(args, kwargs)
    assert caught.value.message.startswith(told)


async def test_one_model_is_the_whole_input() -> None:
    one = made(buy)
    assert await one("run", one.inputs.check((), {"item": "tea"})) == Order(item="tea", count=1)
    assert await one("run", one.inputs.check(("tea", 2), {})) == Order(item="tea", count=2)
    with pytest.raises(BadInput, match=r"^agent 't': count: input should be greater than or equal to 1"):
        one.inputs.check((), {"item": "tea", "count": 0})


async def test_an_agent_without_inputs_takes_none() -> None:
    one = made(nothing)
    assert await one("run", one.inputs.check((), {})) == "done"
    with pytest.raises(BadInput, match="takes 0 inputs, got 1"):
        one.inputs.check((1,), {})


def test_producers_are_told_the_schema_of_the_inputs() -> None:
    schema = made(greet).inputs.schema()
    assert schema["required"] == ["name"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["times"] == {"type": "integer", "default": 1, "title": "Times"}
    assert made_order_schema() == Order.model_json_schema()


def made_order_schema() -> dict[str, Any]:
    agent("u")(buy)
    return AGENTS["u"].inputs.schema()


def test_a_name_taken_twice_is_refused_with_both_places() -> None:
    agent("t")(greet)
    with pytest.raises(Misconfigured, match=r"two agents are named 't': \S+\.greet and \S+\.buy$"):
        agent("t")(buy)
    agent("t")(greet)
    tool("t")(print_it)
    with pytest.raises(Misconfigured, match=r"two tools are named 't': \S+\.print_it and \S+\.undocumented$"):
        tool("t")(undocumented)


def print_it(what: str) -> None:
    """Print something."""


def undocumented(what: str) -> None: ...


def test_a_function_that_is_not_async_is_no_agent() -> None:
    with pytest.raises(Misconfigured, match="agent 't' must be an `async def` function"):
        agent("t")(lambda run: None)  # type: ignore[arg-type,return-value]


async def untyped(run, text): ...  # type: ignore[no-untyped-def]


async def starred(run: Any, *texts: str) -> None: ...


async def placed(run: Any, text: str, /) -> None: ...


async def keyed(run: Any, **texts: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "name"), [(untyped, "text"), (starred, "texts"), (keyed, "texts"), (placed, "text")]
)
def test_inputs_need_types_and_names(function: Any, name: str) -> None:
    with pytest.raises(Misconfigured, match=f"parameter '{name}' needs a type and must not be"):
        agent("t")(function)
    assert "t" not in AGENTS


def test_a_name_that_no_queue_could_carry_is_refused() -> None:
    with pytest.raises(BadInput, match="agent name 'My Agent' must start with a letter"):
        agent("My Agent")(greet)


def test_a_tool_tells_a_model_its_docstring_or_at_least_its_name() -> None:
    tool("said")(print_it)
    tool("unsaid")(undocumented)
    assert (TOOLS["said"].description, TOOLS["unsaid"].description) == ("Print something.", "unsaid")


def test_a_module_that_cannot_be_imported_is_named_with_its_variable() -> None:
    with pytest.raises(Misconfigured, match=r"^FLEET_AGENTS: cannot import 'no.such.module'"):
        load_agents(["no.such.module"])
    assert "chat" in load_agents(["workers.agents.chat"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def broken(:", r"SyntaxError: invalid syntax \(own_agents.py, line 1\)$"),
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(.*own_agents.py, line 2\)$"),
    ],
)
def test_a_module_that_breaks_while_it_is_imported_is_named_with_the_line_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    (tmp_path / "own_agents.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Misconfigured, match=f"^FLEET_AGENTS: cannot import 'own_agents': {told}"):
        load_agents(["own_agents"])


def test_an_agent_needs_a_place_for_its_run() -> None:
    async def forgetful() -> None: ...

    with pytest.raises(Misconfigured, match="agent 't' needs a first parameter for its run"):
        agent("t")(forgetful)
