"""What a run asks of language models: whom it asks for, and what came of it for the report."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from shared.contracts import TaskMessage
from shared.ledger.ancestry import Ancestor
from shared.llm.answer import estimated_usage
from shared.llm.call_context import CallContext, Forebear
from shared.llm.messages import ChatReply, ChatRequest, Usage
from shared.llm.port import ChatPort


class Door(ChatPort, Protocol):
    """A run's way to the models."""

    @property
    def must_act(self) -> bool:
        """Whether words alone are no answer to the task."""

    def sorry(self, reason: str) -> str:
        """What is said for a task that had to act, could not, and has changed nothing."""

    def price(self, request: ChatRequest, usage: Usage) -> float | None:
        """What these tokens cost with the model that is asked first; None: it has no price."""


ChatFor = Callable[[CallContext], Door]


class Questions:
    """Asks on behalf of one run and keeps count. Journals nothing: its run does.

    Args:
        must_act: As the agent declares it; None: as its policy says.
        ancestors: Looks up the tasks above, whose budgets are drawn on as well; None: no run has a budget.
    """

    def __init__(
        self, message: TaskMessage, *, chat_for: ChatFor, must_act: bool | None,
        ancestors: Callable[[], Awaitable[tuple[Ancestor, ...]]] | None,
    ) -> None:  # fmt: skip
        self._message = message
        self._chat_for = chat_for
        self._must_act = must_act
        self._ancestors = ancestors if message.fleet.parent_id is not None else None
        self._door: Door | None = None
        self._above: tuple[Forebear, ...] = ()
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost: float | None = None
        self._last: ChatReply | None = None

    @property
    def door(self) -> Door:
        """The way to the models; most runs of some agents never need one."""
        if self._door is None:
            self._door = self._chat_for(self._context())
        return self._door

    def insist(self, must_act: bool) -> None:
        """Whether words alone are no answer, from the next question on."""
        self._must_act, self._door = must_act, None

    async def ask(self, request: ChatRequest) -> dict[str, Any]:
        """The answer, as the journal keeps it. Raises: what the door raises."""
        if self._ancestors is not None:
            self._above = tuple(Forebear(one.agent, str(one.id)) for one in await self._ancestors())
            self._door = self._ancestors = None
        return (await self.door.chat(request)).to_json()

    def cut_off(self, request: ChatRequest) -> dict[str, Any]:
        """Book a call that was cut off: nobody will say what it cost, but at least all that was sent."""
        usage = estimated_usage(request, written="")
        cost = self.door.price(request, usage)
        self._input_tokens += usage.input_tokens
        self._add(cost)
        return booked(usage.to_json(), cost)

    def note(self, reply: ChatReply) -> None:
        """Count an answer, from a model or from the journal."""
        self._input_tokens += reply.usage.input_tokens
        self._output_tokens += reply.usage.output_tokens
        self._add(reply.cost)
        self._last = reply

    def report(self) -> dict[str, Any]:
        """What the ledger keeps of it: tokens, and of the last answer who gave it."""
        counted = {"input_tokens": self._input_tokens, "output_tokens": self._output_tokens}
        last = self._last
        if last is None:
            return counted if self._cost is None else {**counted, "cost": self._cost}
        told = {"endpoint": last.endpoint, "model": last.model, "cost": self._cost}
        aged = {"cached_at": last.cached_at, "age_s": last.age_s} if last.cached_at is not None else {}
        return {**counted, **told, **aged}

    def _add(self, cost: float | None) -> None:
        if cost is not None:
            self._cost = (self._cost or 0.0) + cost

    def _context(self) -> CallContext:
        """Of rights and persons the task knows its root agent and its conversation: answers are kept apart by both."""
        message = self._message
        return CallContext(
            tenant=message.fleet.tenant, agent=message.agent, run=str(message.id), forebears=self._above,
            deadline_at=message.fleet.deadline_at, must_act=self._must_act, scope=message.fleet.root_agent or "",
            user=message.fleet.session or "",
        )  # fmt: skip


def booked(usage: Mapping[str, Any], cost: float | None) -> dict[str, Any]:
    """What the journal keeps of a call: its tokens, and its cost where there is a price."""
    return {**usage, **({} if cost is None else {"cost": cost})}
