"""Children of a run: tasks of their own, started once each, whose ends the ledger gathers."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Protocol
from uuid import UUID

from shared.contracts import (
    DEFAULT_MAX_ATTEMPTS,
    FleetHeader,
    Priority,
    TaskMessage,
    bucket_in,
    bucket_of,
    checked_agent_name,
    child_task_id,
)
from shared.errors import BadInput, ChildFailed, CrossShard
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.order import refuse_large
from shared.ledger.runs import Runs

CROWDED_S = 0.5
"""Seconds in which the further children of a tenant with a long queue wait in the ledger for their turn."""


class Home(Protocol):
    """What a run needs of its worker to have children."""

    runs: Runs
    ledger: LedgerKnobs

    def publish(self, message: TaskMessage) -> "Future[None]":
        """Send a task to its queue."""

    def hurry_poll(self) -> None:
        """A task that is held in the ledger may be claimed now."""


@dataclass(frozen=True, slots=True)
class Child:
    """A child that was started: hand it to `run.gather`."""

    id: UUID
    agent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a child is to do."""

    agent: str
    input: Mapping[str, Any]
    session: str | None = None
    priority: Priority | None = None
    delay_s: float | None = None
    deadline_s: float | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS

    def request(self) -> dict[str, Any]:
        """What the journal knows it by."""
        return {
            "agent": self.agent, "input": dict(self.input), "session": self.session, "priority": self.priority,
            "delay_s": self.delay_s, "deadline_s": self.deadline_s, "max_attempts": self.max_attempts,
        }  # fmt: skip


class Children:
    """Starts the children of one run; counts them, so that a resumed run means the same ones."""

    def __init__(self, parent: TaskMessage, home: Home, *, epoch: int) -> None:
        self.started = 0
        self._parent = parent
        self._epoch = epoch
        self._home = home
        self._numbers: Counter[str] = Counter()
        self._crowded_until = 0.0

    def next_id(self, agent: str) -> UUID:
        """The id of the next child of this agent. Raises: BadInput when no agent can have this name."""
        number = self._numbers[checked_agent_name(agent)]
        self._numbers[agent] += 1
        self.started += 1
        return child_task_id(self._parent.id, agent, number)

    def refuse_elsewhere(self, session: str | None) -> None:
        """Whether a child, which is on its parent's shard, can reach this session. Raises: CrossShard."""
        parent = self._parent
        if session is not None and bucket_of(parent.fleet.tenant, session) != bucket_in(parent.id):
            raise CrossShard(
                f"session {session!r} may be on another shard than this task, whose children stay with it: spawn"
                " without a session or with this task's own, or submit a task of that session with FleetClient",
                session=session,
            )

    async def start(self, task_id: UUID, order: Order) -> str:
        """Put a child into the ledger and on its queue; a second time it changes nothing.

        Returns: its id.
        Raises: Fenced; BadInput naming the field; TooLarge; UnknownAgent.
        """
        message = TaskMessage(order.agent, order.input, (), task_id, self._header(order))
        refuse_large(
            len(message.wire_body()), self._home.ledger.input_max_bytes, what=f"the input of agent {order.agent!r}"
        )
        is_published = monotonic() >= self._crowded_until
        crowded = await self._home.runs.accept_child(message, parent_epoch=self._epoch, is_published=is_published)
        if crowded:
            self._crowded_until = monotonic() + CROWDED_S
        if order.delay_s:
            return str(task_id)
        if is_published:
            self._home.publish(message).add_done_callback(_heard)
        else:
            self._home.hurry_poll()
        return str(task_id)

    def _header(self, order: Order) -> FleetHeader:
        parent, now = self._parent.fleet, datetime.now(UTC)
        own = None if order.deadline_s is None else now + timedelta(seconds=order.deadline_s)
        return FleetHeader.checked(
            tenant=parent.tenant,
            session=order.session,
            deadline_at=min((one for one in (own, parent.deadline_at) if one is not None), default=None),
            max_attempts=order.max_attempts,
            priority=order.priority or parent.priority,
            available_at=now + timedelta(seconds=order.delay_s) if order.delay_s else None,
            parent_id=self._parent.id,
            root_agent=parent.root_agent or self._parent.agent,
        )


def outcomes(children: list[Child], ended: list[dict[str, Any]]) -> list[Any]:
    """What each child came to: its output, or a ChildFailed."""
    return [
        end["output"] if end["state"] == "succeeded" else _failed(child, end)
        for child, end in zip(children, ended, strict=True)
    ]


def refuse_strangers(children: list[Any]) -> None:
    """Whether these came from `run.spawn`. Raises: BadInput."""
    for one in children:
        if not isinstance(one, Child):
            raise BadInput(f"gather() takes what `await run.spawn(…)` returned, not {type(one).__name__}")


def _failed(child: Child, end: dict[str, Any]) -> ChildFailed:
    error = end["error"] or {"code": end["state"], "message": "no reason recorded"}
    verb = "was cancelled" if end["state"] == "cancelled" else f"failed: {error['message']}"
    return ChildFailed(f"child {child.agent} {child.id} {verb}", task_id=str(child.id), agent=child.agent, error=error)


def _heard(sent: "Future[None]") -> None:
    """A message that did not get out costs a poll: the ledger has the child."""
    if not sent.cancelled():
        sent.exception()
