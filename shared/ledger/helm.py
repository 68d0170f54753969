"""A producer's hand on tasks that it has handed in: each change is checked, made, and followed by what it calls for."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, Literal
from uuid import UUID

from shared.contracts import check_storable
from shared.errors import BadInput
from shared.ledger import replaying, steering
from shared.ledger.hurry import hurry
from shared.ledger.intake import Intake
from shared.ledger.journal import MAX_NAME
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.order import checked_id, refuse_large
from shared.ledger.rows import TaskView
from shared.ledger.steering import Steered
from shared.ledger.vault import Vault, signal_role
from shared.ledger.views import task_of

OnChange = Literal["reuse", "rerun"]
TaskId = UUID | str


class Helm:
    """Steers tasks through one intake; `FleetClient` says what each change means and raises.

    Args:
        redis_url: Where workers hear of a cancel at once.
    """

    def __init__(self, intake: Intake, knobs: LedgerKnobs, *, redis_url: str, vault: Vault) -> None:
        self._intake = intake
        self._database = intake.database
        self._knobs = knobs
        self._redis_url = redis_url
        self._vault = vault

    async def cancel(self, task_id: TaskId) -> TaskView:
        """See `FleetClient.cancel`."""
        done = steering.cancel(self._database, checked_id(task_id), redispatch_s=self._knobs.redispatch_s)
        return await self._followed(done)

    async def signal(self, task_id: TaskId, name: str, payload: Any) -> TaskView:
        """See `FleetClient.signal`."""
        target = checked_id(task_id)
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or "\x00" in name:
            raise BadInput(f"a signal's name is a text of 1 to {MAX_NAME} characters, not {name!r}")
        check_storable(payload)
        refuse_large(len(json.dumps(payload)), self._knobs.input_max_bytes, what=f"the payload of signal {name!r}")
        sealed = self._vault.seal(payload, task_id=target, role=signal_role(name))
        given = steering.signal(self._database, target, name, sealed, redispatch_s=self._knobs.redispatch_s)
        return await self._followed(given)

    async def resume(self, task_id: TaskId, on_change: OnChange | None) -> TaskView:
        """See `FleetClient.resume`."""
        target = checked_id(task_id)
        if on_change not in (None, "reuse", "rerun"):
            raise BadInput(f"on_change must be 'reuse' or 'rerun', not {on_change!r}")
        done = steering.resume(self._database, target, on_change=on_change, redispatch_s=self._knobs.redispatch_s)
        return await self._followed(done)

    async def replay(self, task_id: TaskId, from_step: str | None) -> TaskView:
        """See `FleetClient.replay`."""
        again = replaying.replay(
            self._database, checked_id(task_id), from_step=from_step, redispatch_s=self._knobs.redispatch_s,
            vault=self._vault,
        )  # fmt: skip
        return await self._followed(again)

    async def fork(self, task_id: TaskId, from_step: str | None) -> TaskView:
        """See `FleetClient.fork`."""
        forked = replaying.fork(
            self._database, checked_id(task_id), from_step=from_step, redispatch_s=self._knobs.redispatch_s,
            vault=self._vault,
        )  # fmt: skip
        return await self._followed(forked)

    async def preview(self, task_id: TaskId, from_step: str | None) -> replaying.Preview:
        """See `FleetClient.preview`."""
        return await replaying.preview(self._database, checked_id(task_id), from_step=from_step, vault=self._vault)

    async def _followed(self, change: Awaitable[Steered]) -> TaskView:
        """Publish what may run now, hurry what shall stop, and look at the task."""
        done = await change
        await asyncio.gather(self._intake.publish_all(done.due), hurry(done.running, redis_url=self._redis_url))
        return await task_of(self._database, done.task_id, vault=self._vault)
