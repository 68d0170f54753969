"""The built-in chat agent: conversation, retrieval, tools, and an answer that says at which level it was given."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import BadInput, Transient
from shared.llm.messages import ChatReply, Message, ToolCall
from shared.retrieval.ports import Passage
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


@agent("chat")
async def chat(run: Run, input: ChatInput) -> dict[str, Any]:
    """Answer one message of a conversation.

    Returns: `{"answer", "level", "reasons", "sources"}`.
    """
    history = await run.recall()
    passages = await _notes(run, input)
    turns = [_system(passages), *history, Message("user", input.message)]
    reply = await _ask(run, turns, input)
    await run.remember(Message("user", input.message), Message("assistant", reply.text))
    return {
        "answer": reply.text.strip(),
        "level": run.degradation.level,
        "reasons": run.degradation.reasons,
        "sources": sorted({passage.source for passage in passages}),
    }


async def _notes(run: Run, input: ChatInput) -> tuple[Passage, ...]:
    """Passages for the question; without a vector store the answer is plain conversation (L3)."""
    if input.passages == 0:
        return ()
    try:
        return await run.retrieve(input.message, k=input.passages)
    except Transient as error:
        run.degradation.note("L3", f"retrieval unavailable: {error.message}")
        return ()


async def _ask(run: Run, turns: list[Message], input: ChatInput) -> ChatReply:
    """Ask, run the tools that the model calls, ask again."""
    for _ in range(MAX_TOOL_ROUNDS):
        reply = await run.chat(turns, tools=input.tools, max_tokens=input.max_tokens)
        if not reply.tool_calls:
            return reply
        turns.append(reply.as_message())
        for call in reply.tool_calls:
            turns.append(Message("tool", await _tool_answer(run, call, input.tools), tool_call_id=call.id))
    return await run.chat(turns, max_tokens=input.max_tokens)


async def _tool_answer(run: Run, call: ToolCall, offered: list[str]) -> str:
    """A tool's result as the model reads it; the model's own mistakes are told to the model."""
    try:
        if call.name not in offered:
            raise BadInput(f"no tool is named {call.name!r}; there are: {', '.join(offered) or 'none'}")
        inputs = json.loads(call.arguments or "{}")
        if not isinstance(inputs, dict):
            raise BadInput("the arguments must be an object")
        return json.dumps(await run.tool(call.name, **inputs))
    except (BadInput, Transient, ValueError) as error:
        return json.dumps({"error": str(error)})


def _system(passages: tuple[Passage, ...]) -> Message:
    notes = "".join(f"\n- {passage.text}" for passage in passages)
    return Message("system", SYSTEM + (f"\nNotes:{notes}" if notes else ""))
