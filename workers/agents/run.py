"""`Run`: what an agent can do. Every method that costs something is a journaled step, paid for once."""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.contracts import FleetHeader
from shared.errors import BadInput
from shared.ledger.journal import Journal
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolSpec
from shared.llm.port import ChatPort
from shared.memory.session import SessionMemory
from shared.resilience.reconnect import until_available
from shared.retrieval.ports import Passage
from shared.retrieval.retriever import Retriever
from workers.agents.agent import TOOLS, Tool

LEVELS = ("L0", "L1", "L2", "L3", "L4")


@dataclass(frozen=True, slots=True)
class Ports:
    """The world outside, as one worker process reaches it."""

    chat: ChatPort
    retriever: Retriever
    memory: SessionMemory


@dataclass(slots=True)
class Degradation:
    """How far the answer is from the full service, and why."""

    level: str = "L0"
    reasons: list[str] = field(default_factory=list)

    def note(self, level: str, reason: str) -> None:
        """Remember the worst level and every reason."""
        self.level = max(self.level, level, key=LEVELS.index)
        self.reasons.append(reason)


class Run:
    """One claimed run of one task.

    Attributes:
        task_id, tenant, session: Whose run this is; session is None outside a conversation.
        attempt: From 1; more means that an earlier worker died under it.
        degradation: The level that the answer will carry.
    """

    def __init__(self, *, task_id: UUID, header: FleetHeader, attempt: int, journal: Journal, ports: Ports) -> None:
        self.task_id = task_id
        self.tenant = header.tenant
        self.session = header.session
        self.deadline_at = header.deadline_at
        self.attempt = attempt
        self.degradation = Degradation()
        self._journal = journal
        self._ports = ports
        self._input_tokens = 0
        self._output_tokens = 0
        self._remembered = 0

    async def step(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(*args)` once, however often the task is resumed; blocking functions run in a thread.

        Args:
            args: JSON-safe: they are the step's fingerprint.

        Returns: The function's JSON-safe result, from the journal when it was completed before.
        Raises: BadInput when arguments or result are not JSON; StepChanged when a resumed run asks differently.
        """
        return await self._journal.step(name, kind="step", request=list(args), call=lambda: _call(function, args, {}))

    async def chat(
        self, prompt: str | Sequence[Message], *, system: str | None = None, model: str | None = None,
        max_tokens: int | None = None, temperature: float | None = None, tools: Sequence[str] = (), name: str = "chat",
    ) -> ChatReply:  # fmt: skip
        """Ask the model, once.

        Args:
            prompt: A question, or a whole conversation.
            tools: Names of registered tools the model may call; their calls come back in `reply.tool_calls`.

        Raises: LLMTimeout, LLMUnavailable, LLMRateLimited, LLMRefused.
        """
        turns = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
        if system is not None:
            turns = (Message("system", system), *turns)
        specs = tuple(_tool_spec(_tool(one)) for one in tools)
        request = ChatRequest(turns, model=model, max_tokens=max_tokens, temperature=temperature, tools=specs)

        async def ask() -> dict[str, Any]:
            return (await self._ports.chat.chat(request)).to_json()

        answer = await self._journal.step(
            name, kind="llm", request=request.question_json(), call=ask, usage_of=lambda reply: reply["usage"]
        )
        reply = ChatReply.from_json(answer)
        self._input_tokens += reply.usage.input_tokens
        self._output_tokens += reply.usage.output_tokens
        return reply

    async def tool(self, name: str, /, **inputs: Any) -> Any:
        """Call a registered tool, once.

        Raises: BadInput for an unknown tool or inputs that do not fit; and what the tool raises.
        """
        one = _tool(name)
        checked = one.inputs.check((), inputs)
        return await self._journal.step(
            f"tool.{name}",
            kind="tool",
            request=inputs,
            call=lambda: _call(
                one.function,
                tuple(checked.values()) if one.inputs.is_one_model else (),
                {} if one.inputs.is_one_model else checked,
            ),
        )

    async def retrieve(self, query: str, *, k: int = 3) -> tuple[Passage, ...]:
        """The passages nearest in meaning, once.

        Raises: VectorsUnavailable.
        """

        async def search() -> list[dict[str, Any]]:
            return [passage.to_json() for passage in await self._ports.retriever.search(query, k=k, tenant=self.tenant)]

        found = await self._journal.step("retrieve", kind="retrieval", request={"query": query, "k": k}, call=search)
        return tuple(Passage.from_json(one) for one in found)

    async def recall(self) -> tuple[Message, ...]:
        """The conversation so far, once: a resumed run sees what the first one saw."""
        if self.session is None:
            return ()

        async def read() -> list[dict[str, Any]]:
            turns = await until_available(
                lambda: self._ports.memory.context(self.tenant, self.session or ""), what="PostgreSQL"
            )
            return [turn.to_json() for turn in turns]

        found = await self._journal.step("recall", kind="step", request={"session": self.session}, call=read)
        return tuple(Message.from_json(one) for one in found)

    async def remember(self, *turns: Message) -> None:
        """Add turns to the conversation, once each; without a session it does nothing."""
        if self.session is None:
            return
        first = self._remembered
        self._remembered += len(turns)

        async def write() -> None:
            await until_available(
                lambda: self._ports.memory.append(
                    self.tenant, self.session or "", turns, task_id=self.task_id, first_ordinal=first
                ),
                what="PostgreSQL",
            )

        await self._journal.step(
            "remember", kind="step", request={"first": first, "turns": [turn.to_json() for turn in turns]}, call=write
        )

    def report(self) -> dict[str, Any]:
        """What the ledger keeps beside the output."""
        return {
            "level": self.degradation.level,
            "reasons": self.degradation.reasons,
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
            "steps_executed": self._journal.executed,
            "steps_replayed": self._journal.replayed,
        }


async def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    result = await asyncio.to_thread(function, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _tool(name: str) -> Tool:
    if name not in TOOLS:
        raise BadInput(f"no tool is named {name!r}; there are: {', '.join(sorted(TOOLS)) or 'none'}", tool=name)
    return TOOLS[name]


def _tool_spec(one: Tool) -> ToolSpec:
    return ToolSpec(one.name, one.description, one.inputs.schema())
