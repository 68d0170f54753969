"""`@agent` and `@tool`: a typed async function becomes a durable task, a typed function becomes a tool.

@agent("summarise")
async def summarise(run: Run, text: str, sentences: int = 3) -> str:
    reply = await run.chat(f"Summarise in {sentences} sentences: {text}")
    return reply.text
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from shared.contracts import checked_agent_name, first_problem
from shared.errors import BadInput, Misconfigured
from shared.ledger.catalogue import PROMPT_TOKENS
from shared.ledger.journal import OnChange
from shared.ledger.retry import ONCE, Retry

AgentFunction = Callable[..., Awaitable[Any]]

AGENTS: dict[str, "Agent"] = {}
TOOLS: dict[str, "Tool"] = {}


class _Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The named inputs of a function, checked by Pydantic: built from its signature or its one model parameter."""

    owner: str
    model: type[BaseModel]
    names: tuple[str, ...]
    is_one_model: bool

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the named inputs."""
        return self.model.model_json_schema()

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments to call the function with.

        Raises: BadInput naming the field.
        """
        if len(args) > len(self.names):
            raise BadInput(f"{self.owner} takes {len(self.names)} inputs, got {len(args)} positional ones")
        twice = set(self.names[: len(args)]) & set(kwargs)
        if twice:
            raise BadInput(f"{self.owner}: {min(twice)}: given by place and by name")
        named = dict(zip(self.names, args, strict=False)) | dict(kwargs)
        try:
            checked = self.model.model_validate(named)
        except ValidationError as error:
            raise BadInput(f"{self.owner}: {first_problem(error)}") from None
        if self.is_one_model:
            return {"": checked}
        return {name: getattr(checked, name) for name in type(checked).model_fields}


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered agent."""

    name: str
    function: AgentFunction
    inputs: Inputs
    soft_limit_s: float | None
    hard_limit_s: float | None
    on_change: OnChange = "pause"
    max_running: int | None = None
    retry: Retry = ONCE
    must_act: bool | None = None
    prompt: str | None = None

    def offered(self, *, prompt_tokens: int | None) -> dict[str, Any]:
        """The schema of its inputs as producers are told it, with the length of prompt that its models take."""
        schema = self.inputs.schema()
        if self.prompt is None or prompt_tokens is None:
            return schema
        inputs = schema["properties"]
        return {**schema, "properties": {**inputs, self.prompt: {**inputs[self.prompt], PROMPT_TOKENS: prompt_tokens}}}

    async def __call__(self, run: Any, inputs: Mapping[str, Any]) -> Any:
        """Run the function with checked inputs."""
        if self.inputs.is_one_model:
            return await self.function(run, inputs[""])
        return await self.function(run, **inputs)


@dataclass(frozen=True, slots=True)
class Tool:
    """A registered tool: what the model is told, and what runs."""

    name: str
    description: str
    function: Callable[..., Any]
    inputs: Inputs


def agent(
    name: str, *, soft_limit_s: float | None = None, hard_limit_s: float | None = None, on_change: OnChange = "pause",
    max_running: int | None = None, retry: Retry = ONCE, must_act: bool | None = None, prompt: str | None = None,
) -> Callable[[AgentFunction], AgentFunction]:  # fmt: skip
    """Register an `async def fn(run, …)` as the Celery task `agents.<name>`.

    Args:
        name: a-z, 0-9, '_', '.', '-'.
        soft_limit_s: Seconds until SoftTimeLimitExceeded is raised inside; the worker's default otherwise.
        hard_limit_s: Seconds until it is cancelled. Both count anew each time that a run which waited goes on.
        on_change: What a resumed run does with a completed step that asks for something else than before, as after a
            change of the code: `pause` parks the task until an operator decides, `reuse` takes the old result, `rerun`
            executes the step again.
        max_running: Runs of it at once in the whole fleet, with their children; None: no limit.
        retry: When its steps that fail are tried again, unless they say so themselves; by default never.
        must_act: Its tasks act through tools: without a model or its tools the answer says so instead of chatting.
            None: as `agents.<name>.must_act` says in the file of language models.
        prompt: The input that goes to a model in one piece: a text longer than its models take is refused at submit.

    Raises: Misconfigured for a name taken twice, a function that is not async, inputs without types, or an option that
        means nothing.
    """

    def register(function: AgentFunction) -> AgentFunction:
        checked_agent_name(name)
        if not inspect.iscoroutinefunction(function):
            raise Misconfigured(f"agent {name!r} must be an `async def` function")
        if name in AGENTS and AGENTS[name].function is not function:
            raise Misconfigured(
                f"two agents are named {name!r}: {_where(AGENTS[name].function)} and {_where(function)}"
            )
        if on_change not in get_args(OnChange):
            raise Misconfigured(f"agent {name!r}: on_change must be one of {', '.join(get_args(OnChange))}")
        if max_running is not None and max_running < 1:
            raise Misconfigured(f"agent {name!r}: max_running must be at least 1")
        inputs = _inputs(f"agent {name!r}", function, skip=1)
        if prompt is not None and prompt not in inputs.names:
            raise Misconfigured(
                f"agent {name!r}: prompt must be one of its inputs: {', '.join(inputs.names) or 'none'}"
            )
        AGENTS[name] = Agent(
            name, function, inputs, soft_limit_s, hard_limit_s, on_change, max_running, retry, must_act, prompt
        )
        return function

    return register


def tool(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function, async or not, as a tool; its docstring is what a model is told.

    Raises: Misconfigured for a name taken twice or inputs without types.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in TOOLS and TOOLS[name].function is not function:
            raise Misconfigured(f"two tools are named {name!r}: {_where(TOOLS[name].function)} and {_where(function)}")
        inputs = _inputs(f"tool {name!r}", function, skip=0)
        TOOLS[name] = Tool(name, inspect.getdoc(function) or name, function, inputs)
        return function

    return register


def _inputs(owner: str, function: Callable[..., Any], *, skip: int) -> Inputs:
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if skip and not inspect.signature(function).parameters:
        raise Misconfigured(f"{owner} needs a first parameter for its run")
    hints = get_type_hints(function, include_extras=True)
    for one in parameters:
        if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.name not in hints:
            raise Misconfigured(
                f"{owner}: parameter {one.name!r} needs a type and must not be *args, **kwargs or positional-only"
            )
    names = tuple(one.name for one in parameters)
    if len(names) == 1 and inspect.isclass(hints[names[0]]) and issubclass(hints[names[0]], BaseModel):
        model = hints[names[0]]
        return Inputs(owner, model, tuple(model.model_fields), is_one_model=True)
    shape: dict[str, Any] = {
        one.name: (hints[one.name], ... if one.default is one.empty else one.default) for one in parameters
    }
    return Inputs(owner, create_model(function.__name__, __base__=_Inputs, **shape), names, is_one_model=False)


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
