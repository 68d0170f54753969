"""The built-in chat agent: conversation, retrieval, tools, and an answer that says at which level it was given."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import BadInput, Transient
from shared.llm.ladder import Capabilities, Decision, Level, decide
from shared.llm.messages import ChatReply, Message, ToolCall
from shared.retrieval.ports import Passage
from shared.telemetry import llm_metrics as metrics
from workers.agents.agent import agent
from workers.agents.run import Run

SYSTEM = "You are a helpful assistant. Answer briefly. Use the notes where they help."
MAX_TOOL_ROUNDS = 4


class ChatInput(BaseModel):
    """What the chat agent takes."""

    model_config = ConfigDict(extra="forbid")

    message: Annotated[str, Field(min_length=1, max_length=20_000)]
    tools: Annotated[list[str], Field(max_length=20)] = []
    passages: Annotated[int, Field(ge=0, le=20)] = 2
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 160
    must_act: bool | None = None
    """Whether words alone are no answer: it acts through tools, or says that it could not. None: as its policy says."""


@dataclass(slots=True)
class Service:
    """What was to be had for this answer, as it turns out, and what was done on the way to it."""

    has_notes: bool = True
    has_tools: bool = True
    outages: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    """Tools that ran."""

    def decide(self, level: Level, *, must_act: bool) -> Decision:
        """The ladder's word on an answer whose models gave it at this level."""
        given: dict[Level, Literal["first", "backup", "none"]] = {"L0": "first", "L2": "none", "L4": "none"}
        capabilities = Capabilities(
            llm=given.get(level, "backup"), rag=self.has_notes, tools=self.has_tools, cache=level == "L2"
        )
        return decide(capabilities, must_act=must_act, reasons=self.outages)


@agent("chat", prompt="message")
async def chat(run: Run, input: ChatInput) -> dict[str, Any]:
    """Answer one message of a conversation.

    Returns: `{"answer", "level", "reasons", "endpoint", "model", "sources", "could_not_act"}`; of an answer from the
        cache also `cached_at` and `age_s`.
    """
    if input.must_act is not None:
        run.must_act = input.must_act
    service = Service()
    history = await run.recall()
    passages = await _notes(run, input, service)
    turns = [_system(passages), *history, Message("user", input.message)]
    reply = await _ask(run, turns, input, service)
    decision = service.decide(run.degradation.level, must_act=run.must_act)
    run.degradation.note(decision.level, *decision.reasons)
    could_not_act = decision.action == "say_could_not_act"
    answer = _sorry(run, service, reply) if could_not_act else reply.text
    run.degradation.could_not_act = could_not_act
    _count(service, is_plain=decision.action == "answer_plainly", could_not_act=could_not_act)
    if service.done or not (could_not_act or decision.action == "say_sorry"):
        await run.remember(Message("user", input.message), Message("assistant", answer))
    aged = {"cached_at": reply.cached_at, "age_s": reply.age_s} if reply.cached_at is not None else {}
    return {
        "answer": answer.strip(),
        "level": run.degradation.level,
        "reasons": run.degradation.reasons,
        "endpoint": reply.endpoint,
        "model": reply.model,
        "sources": sorted({passage.source for passage in passages}),
        "could_not_act": could_not_act,
        **aged,
    }


async def _notes(run: Run, input: ChatInput, service: Service) -> tuple[Passage, ...]:
    """Passages for the question; without a vector store the answer is plain conversation (L3)."""
    if input.passages == 0:
        return ()
    try:
        return await run.retrieve(input.message, k=input.passages)
    except Transient as error:
        service.has_notes = False
        service.outages.append(error.message)
        return ()


async def _ask(run: Run, turns: list[Message], input: ChatInput, service: Service) -> ChatReply:
    """Ask, run the tools that the model calls, ask again; once tools are away, a task that may chat is asked plainly.

    Returns: The last answer; of a task that must act and cannot, it is not what is said.
    """
    for _ in range(MAX_TOOL_ROUNDS):
        reply = await run.chat(turns, tools=input.tools, max_tokens=input.max_tokens)
        if not reply.tool_calls:
            return reply
        turns.append(reply.as_message())
        for call in reply.tool_calls:
            answer = await _tool_answer(run, call, input.tools, service)
            turns.append(Message("tool", answer, tool_call_id=call.id))
        if not service.has_tools:
            break
    if run.must_act and not service.has_tools:
        return reply
    return await run.chat(turns, max_tokens=input.max_tokens)


async def _tool_answer(run: Run, call: ToolCall, offered: list[str], service: Service) -> str:
    """A tool's result as the model reads it; the model's own mistakes are told to the model."""
    try:
        if call.name not in offered:
            raise BadInput(f"no tool is named {call.name!r}; there are: {', '.join(offered) or 'none'}")
        inputs = json.loads(call.arguments or "{}")
        if not isinstance(inputs, dict):
            raise BadInput("the arguments must be an object")
        if not service.has_tools:
            raise BadInput("tools are unavailable")
        result = json.dumps(await run.tool(call.name, **inputs))
        service.done.append(call.name)
        return result
    except Transient as error:
        service.has_tools = False
        service.outages.append(f"tool {call.name}: {error.message}")
        return json.dumps({"error": str(error)})
    except (BadInput, ValueError) as error:
        return json.dumps({"error": str(error)})


def _sorry(run: Run, service: Service, reply: ChatReply) -> str:
    """Words for a task that had to act; they do not hide what was done before it came to that."""
    if reply.could_not_act and not service.done:
        return reply.text
    why = service.outages[-1] if service.outages else run.degradation.reasons[0]
    if service.done:
        return f"I could not finish what you asked: {why}. Done before: {', '.join(service.done)}."
    return run.sorry(why)


def _count(service: Service, *, is_plain: bool, could_not_act: bool) -> None:
    """What the plane cannot know of: outages around the models."""
    missing = [name for name, has in (("retrieval", service.has_notes), ("tools", service.has_tools)) if not has]
    for name in missing if is_plain else ():
        metrics.PLAIN_ANSWERS.labels("chat", name).inc()
    if could_not_act and not service.has_tools:
        metrics.COULD_NOT_ACT.labels("chat", "tools").inc()


def _system(passages: tuple[Passage, ...]) -> Message:
    notes = "".join(f"\n- {passage.text}" for passage in passages)
    return Message("system", SYSTEM + (f"\nNotes:{notes}" if notes else ""))
