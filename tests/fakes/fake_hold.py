"""A worker of fakes for one delivered task: what it holds, and a run from claim to end in the loop's own time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast
from uuid import UUID

from celery.exceptions import Ignore

from shared.contracts import FleetHeader, TaskMessage
from shared.ledger.runs import Claim
from shared.ledger.vault import Vault
from tests.fakes.fake_ledger import FakeCommit, FakeHome, FakeRuns
from tests.fakes.fake_world import FakeWorld
from tests.fakes.hand_loop import at_once
from workers.agents.active import Active
from workers.agents.agent import AGENTS, Agent, agent
from workers.agents.execution import execute
from workers.agents.knobs import WorkerKnobs
from workers.agents.pool import Delivery, Reason, current_delivery
from workers.agents.run import Run

TASK = UUID(int=7)


class FakeDelivery:
    """A delivery of the task that runs it."""

    def __init__(self) -> None:
        self.is_accepted = False
        self.cancel_reason: Reason | None = None
        self.task = asyncio.current_task()

    def accept(self) -> None:
        self.is_accepted = True

    def cancel(self, reason: Reason) -> None:
        self.cancel_reason = self.cancel_reason or reason
        assert self.task is not None
        self.task.cancel()


class FakeHold(FakeHome):
    """A worker."""

    def __init__(self) -> None:
        self.commit = FakeCommit()
        self.commit.becomes["claim"] = "running"
        super().__init__(FakeRuns(self.commit))
        self.ports = FakeWorld().ports
        self.knobs = WorkerKnobs()
        self.vault = Vault()
        self.active: dict[UUID, Active] = {}
        self.begun: list[Claim] = []
        self.returned: list[TaskMessage] = []
        self.is_new = True

    async def back_in_place(self) -> None: ...

    def begin(self, claim: Claim) -> bool:
        self.begun.append(claim)
        return self.is_new

    def handed_back(self, message: TaskMessage) -> None:
        self.returned.append(message)

    @property
    def family(self) -> FakeRuns:
        return cast(FakeRuns, self.runs)

    def written(self, kind: str) -> dict[str, Any]:
        """The one row of a kind."""
        (row,) = [row for (one, _, _), row in zip(self.commit.history, self.commit.rows, strict=True) if one == kind]
        return row

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.commit.history]


def made(function: Callable[[Run], Awaitable[Any]], **options: Any) -> Agent:
    async def registered(run: Run) -> Any:
        return await function(run)

    agent("t", **options)(registered)
    return AGENTS["t"]


def executed(
    hold: FakeHold, one: Agent, *, cut: tuple[float, Reason] | None = None, put_down_at: float | None = None,
    **header: Any,
) -> Any:  # fmt: skip
    """Run a delivered task to its end in the loop's own time; what it raised, if it raised."""

    async def main() -> Any:
        delivery, loop = FakeDelivery(), asyncio.get_running_loop()
        current_delivery.set(cast(Delivery, delivery))
        if cut is not None:
            loop.call_later(cut[0], lambda: hold.active[TASK].cancel(cut[1]))
        if put_down_at is not None:
            loop.call_later(put_down_at, lambda: hold.active[TASK].put_down())
        try:
            return await execute(
                hold, one, str(TASK), (), {}, FleetHeader(**header).model_dump(mode="json", exclude_none=True)
            )
        except (Exception, Ignore) as error:
            return error
        finally:
            assert delivery.is_accepted is bool(hold.is_new)
            assert hold.active == {}

    return at_once(main())
