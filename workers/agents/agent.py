"""`@agent` and `@tool`: a typed async function becomes a durable task, a typed function becomes a tool.

@agent("summarise")
async def summarise(run: Run, text: str, sentences: int = 3) -> str:
    reply = await run.chat(f"Summarise in {sentences} sentences: {text}")
    return reply.text
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from shared.contracts import checked_agent_name, first_problem
from shared.errors import BadInput, Misconfigured

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
    name: str, *, soft_limit_s: float | None = None, hard_limit_s: float | None = None
) -> Callable[[AgentFunction], AgentFunction]:
    """Register an `async def fn(run, …)` as the Celery task `agents.<name>`.

    Args:
        name: a-z, 0-9, '_', '.', '-'.
        soft_limit_s: Seconds until SoftTimeLimitExceeded is raised inside; the worker's default otherwise.
        hard_limit_s: Seconds until it is cancelled.

    Raises: Misconfigured for a name taken twice, a function that is not async, or inputs without types.
    """

    def register(function: AgentFunction) -> AgentFunction:
        checked_agent_name(name)
        if not inspect.iscoroutinefunction(function):
            raise Misconfigured(f"agent {name!r} must be an `async def` function")
        if name in AGENTS and AGENTS[name].function is not function:
            raise Misconfigured(
                f"two agents are named {name!r}: {_where(AGENTS[name].function)} and {_where(function)}"
            )
        inputs = _inputs(f"agent {name!r}", function, skip=1)
        AGENTS[name] = Agent(name, function, inputs, soft_limit_s, hard_limit_s)
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
