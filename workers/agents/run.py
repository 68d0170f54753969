"""`Run`: what an agent can do. Every method that costs something is a journaled step, paid for once."""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

from shared.contracts import DEFAULT_MAX_ATTEMPTS, Priority, TaskMessage
from shared.errors import BadInput, ChildFailed, WaitTimeout
from shared.ledger.journal import Journal, Look
from shared.ledger.retry import ONCE, Retry
from shared.ledger.suspension import Suspension
from shared.llm.ladder import Level, worst
from shared.llm.messages import ChatReply, ChatRequest, Message, ToolSpec
from shared.memory.session import SessionMemory
from shared.resilience.reconnect import until_available
from shared.retrieval.ports import Passage
from shared.retrieval.retriever import Retriever
from workers.agents.agent import TOOLS, Tool
from workers.agents.children import Child, Children, Home, Order, outcomes, refuse_strangers
from workers.agents.questions import ChatFor, Questions, booked
from workers.agents.threads import in_thread

LONGEST_WAIT_S = 366 * 86_400.0
"""Seconds; what may take longer waits without a limit."""
MOST_REASONS = 20
"""Of degradation in one report: a run that asks a thousand times during an outage has a thousand, much alike."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The world outside, as one worker process reaches it.

    Attributes:
        chat_for: Makes a run's own way to the language models.
        has_run_budgets: Whether runs have budgets: children draw on those of the runs above them.
        is_sharded: Whether sessions may be on other shards than this worker's.
        prompt_tokens: Tokens that the widest model of an agent takes; None: unknown.
    """

    chat_for: ChatFor
    retriever: Retriever
    memory: SessionMemory
    has_run_budgets: bool = False
    is_sharded: bool = False
    prompt_tokens: Callable[[str], int | None] = lambda _agent: None


@dataclass(slots=True)
class Degradation:
    """How far the answer is from the full service, and why; whether it is an apology for what was not done."""

    level: Level = "L0"
    reasons: list[str] = field(default_factory=list)
    could_not_act: bool = False

    def note(self, level: Level, *reasons: str) -> None:
        """Remember the worst level, and every reason once, up to `MOST_REASONS`."""
        self.level = worst(self.level, level)
        new = [one for one in dict.fromkeys(reasons) if one not in self.reasons]
        self.reasons += new[: MOST_REASONS - len(self.reasons)]


class Run:
    """One claimed run of one task.

    A wait (`sleep`, `wait_for`, `gather`, a late retry) gives the slot back once all branches of the run wait. The
    agent is then left where it stands, and called again later, perhaps on another worker: its completed steps come
    from the journal. So what it does between steps must depend on its inputs and their results alone.

    Attributes:
        task_id, tenant, session: Whose run this is; session is None outside a conversation.
        attempt: From 1; more means that an earlier worker died under it.
        degradation: The level that the answer will carry.
    """

    def __init__(
        self, *, message: TaskMessage, attempt: int, journal: Journal, ports: Ports, home: Home, retry: Retry = ONCE,
        must_act: bool | None = None,
    ) -> None:  # fmt: skip
        self.task_id = message.id
        self.tenant = message.fleet.tenant
        self.session = message.fleet.session
        self.deadline_at = message.fleet.deadline_at
        self.attempt = attempt
        self.degradation = Degradation()
        self._journal = journal
        self._ports = ports
        self._home = home
        self._retry = retry
        self._children = Children(message, home, epoch=journal.epoch)
        self._questions = Questions(
            message, chat_for=ports.chat_for, must_act=must_act,
            ancestors=(lambda: home.runs.ancestors(message.id)) if ports.has_run_budgets else None,
        )  # fmt: skip
        self._awaited: Counter[str] = Counter()
        self._remembered = 0

    async def step(self, name: str, function: Callable[..., Any], *args: Any, retry: Retry | None = None) -> Any:
        """Run `function(*args)` once, however often the task is resumed; blocking functions run in a thread.

        Args:
            args: JSON-safe: they are the step's fingerprint.
            retry: When a failure is tried again; the agent's own rule otherwise.

        Returns: The function's JSON-safe result, from the journal when it was completed before.
        Raises: BadInput when arguments or result are not JSON; what the function raises.
        """
        return await self._journal.step(
            name,
            kind="step",
            request=list(args),
            call=lambda: _call(function, args, {}),
            retry=retry or self._retry,
        )

    async def sleep(self, seconds: float, *, name: str = "sleep") -> None:
        """Wait, without a slot when it takes long; a resumed run waits for what is left.

        Raises: BadInput.
        """
        await self._journal.wait(
            name,
            kind="sleep",
            request=seconds,
            wait_s=_checked_wait_s(seconds),
            look=_nothing_comes,
            suspension=Suspension(kind="sleep"),
            expired=lambda: None,
        )

    async def wait_for(self, name: str, *, timeout_s: float | None = None) -> Any:
        """Wait for a signal that somebody sends with `client.signal(task_id, name, payload)`, without a slot.

        None is lost: the first wait for a name gets the first signal of that name, sent before or after, and so on.

        Returns: Its payload.
        Raises: WaitTimeout when it has not come in time; BadInput.
        """
        number = self._awaited[name]
        self._awaited[name] += 1
        return await self._journal.wait(
            f"signal.{name}",
            kind="signal",
            request={"timeout_s": timeout_s},
            wait_s=None if timeout_s is None else _checked_wait_s(timeout_s),
            look=lambda: self._home.runs.look_for_signal(self.task_id, name=name, number=number),
            suspension=Suspension(kind="signal", signals=(name,)),
            expired=lambda: WaitTimeout(f"signal {name!r} did not come within {timeout_s:g} s", signal=name),
        )

    async def spawn(
        self, agent: str, input: Mapping[str, Any] | None = None, *, session: str | None = None,
        priority: Priority | None = None, delay_s: float | None = None, deadline_s: float | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    ) -> Child:  # fmt: skip
        """Start a child task, once; it runs on any worker, and is cancelled when this task fails or is cancelled.

        Its tenant, and its priority unless given, are the parent's; its deadline is not after the parent's. A parent
        that succeeds without gathering its children leaves them to themselves.

        Raises: BadInput naming the field; UnknownAgent; with several shards CrossShard for a session that may be on
            another one.
        """
        if self._ports.is_sharded:
            self._children.refuse_elsewhere(session)
        task_id = self._children.next_id(agent)
        order = Order(
            agent=agent, input=input or {}, session=session, priority=priority, delay_s=delay_s,
            deadline_s=deadline_s, max_attempts=max_attempts,
        )  # fmt: skip
        started = await self._journal.step(
            f"spawn.{agent}", kind="spawn", request=order.request(), call=lambda: self._children.start(task_id, order)
        )
        return Child(UUID(started), agent)  # a fork's is the one that its original started

    async def gather(
        self, children: Iterable[Child], *, return_exceptions: bool = False, timeout_s: float | None = None
    ) -> list[Any]:
        """Wait, without a slot, until every one of these children has ended.

        Returns: Their outputs, in the order given.
        Raises: ChildFailed for the first in that order that did not succeed, unless `return_exceptions` puts it in its
            place; WaitTimeout.
        """
        asked = list(children)
        refuse_strangers(asked)
        ids = tuple(one.id for one in asked)
        ended = await self._journal.wait(
            "gather",
            kind="children",
            request={"children": [str(one) for one in ids], "timeout_s": timeout_s},
            wait_s=None if timeout_s is None else _checked_wait_s(timeout_s),
            look=lambda: self._home.runs.look_for_children(self.task_id, ids),
            suspension=Suspension(kind="children", children=(tuple(str(one) for one in ids),)),
            expired=lambda: WaitTimeout(f"{len(ids)} children did not end within {timeout_s:g} s"),
        )
        found = outcomes(asked, ended)
        failed = [one for one in found if isinstance(one, ChildFailed)]
        if failed and not return_exceptions:
            raise failed[0]
        return found

    async def chat(
        self, prompt: str | Sequence[Message], *, system: str | None = None, model: str | None = None,
        max_tokens: int | None = None, temperature: float | None = None, tools: Sequence[str] = (), name: str = "chat",
        retry: Retry | None = None,
    ) -> ChatReply:  # fmt: skip
        """Ask the models of the agent's chain, once.

        While they are down the answer comes from further down the ladder, and says so: `reply.level`, `reply.reasons`.

        Args:
            prompt: A question, or a whole conversation.
            model: Asked first; the chain's first otherwise.
            tools: Names of registered tools the model may call; their calls come back in `reply.tool_calls`.
            retry: When a failure is tried again; the agent's own rule otherwise. Where waiting helps (limits, or an
                agent that prefers it to degrading), the run waits by itself, without a slot.

        Raises: LLMRefused, BudgetSpent, PromptTooLong; BadInput for a model that is not configured.
        """
        turns = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
        if system is not None:
            turns = (Message("system", system), *turns)
        specs = tuple(_tool_spec(_tool(one)) for one in tools)
        request = ChatRequest(turns, model=model, max_tokens=max_tokens, temperature=temperature, tools=specs)
        answer = await self._journal.step(
            name,
            kind="llm",
            request=request.question_json(),
            call=lambda: self._questions.ask(request),
            usage_of=lambda reply: booked(reply["usage"], reply["cost"]),
            usage_if_cut=lambda: self._questions.cut_off(request),
            retry=retry or self._retry,
        )
        reply = ChatReply.from_json(answer)
        self._questions.note(reply)
        if reply.level != "L0":
            self.degradation.note(cast(Level, reply.level), *reply.reasons)
            self.degradation.could_not_act |= reply.could_not_act
        return reply

    async def tool(self, name: str, /, *, retry: Retry | None = None, **inputs: Any) -> Any:
        """Call a registered tool, once.

        Args:
            retry: When a failure is tried again; the agent's own rule otherwise. Anything else of this name, such as
                what a model came up with, is an input like all others.

        Raises: BadInput for an unknown tool or inputs that do not fit; and what the tool raises.
        """
        if not isinstance(retry, Retry | None):
            inputs, retry = {**inputs, "retry": retry}, None
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
            retry=retry or self._retry,
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

    @property
    def must_act(self) -> bool:
        """Whether words alone are no answer to this task: it acts through tools, or says that it could not.

        As its agent or the file of models says, unless it is set.
        """
        return self._questions.door.must_act

    @must_act.setter
    def must_act(self, value: bool) -> None:
        self._questions.insist(value)

    def sorry(self, reason: str) -> str:
        """What is said for a task that had to act, could not, and has changed nothing."""
        return self._questions.door.sorry(reason)

    @property
    def children(self) -> int:
        """How many it has started."""
        return self._children.started

    @property
    def doubts_met(self) -> int:
        """Calls that an earlier worker was cut off in, made anew by this run."""
        return self._journal.doubts_met

    def report(self) -> dict[str, Any]:
        """What the ledger keeps beside the output."""
        return {
            "level": self.degradation.level,
            "reasons": self.degradation.reasons,
            **({"could_not_act": True} if self.degradation.could_not_act else {}),
            **self._questions.report(),
            "steps_executed": self._journal.executed,
            "steps_replayed": self._journal.replayed,
            "in_doubt": self._journal.in_doubt,
        }


async def _nothing_comes() -> Look:
    return Look(is_over=False)


def _checked_wait_s(seconds: float) -> float:
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and 0 <= seconds <= LONGEST_WAIT_S):
        raise BadInput(f"a wait must be from 0 to {LONGEST_WAIT_S:g} seconds (a year), not {seconds!r}")
    return float(seconds)


async def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        result = await in_thread(function, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, KeyboardInterrupt) as error:  # in a branch it would end the loop of all runs
        raise RuntimeError(f"a step raised {error!r}") from error


def _tool(name: str) -> Tool:
    if name not in TOOLS:
        raise BadInput(f"no tool is named {name!r}; there are: {', '.join(sorted(TOOLS)) or 'none'}", tool=name)
    return TOOLS[name]


def _tool_spec(one: Tool) -> ToolSpec:
    return ToolSpec(one.name, one.description, one.inputs.schema())
