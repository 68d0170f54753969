"""After a promotion: every other node is brought behind the new primary, in place or by being taken back."""

import asyncio
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from workers.ops.replication.group import Group
from workers.ops.replication.look import look
from workers.ops.replication.node import Node
from workers.ops.spec import ServerFailed
from workers.ops.supervisor import Supervisor

POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """Follows one promotion; both methods return in words how the node stands then."""

    group: Group
    supervisor: Supervisor
    timeline: int | None
    """The new primary's."""

    async def re_point(self, node: Node) -> str:
        """Let a running replica follow the new primary; one that cannot, having more than it, is taken back."""
        patience = self.group.knobs
        server = self.supervisor.server(node.name)
        point(self.supervisor, node, self.group.settings_of(node, behind=self.group.leader))
        if server.child is None or server.child.exited.is_set():
            return "down; it follows when it starts"
        if await self._streams(node):
            return "streams"
        if not (await look(node, within_s=patience.look_s)).answers:
            return "does not answer; it follows when it does"
        node.fence("it did not follow: it may have more than its primary")
        await self.supervisor.stop(node.name, patience_s=patience.polite_s)
        return await self.take_back(node)

    async def take_back(self, node: Node) -> str:
        """Start a fenced node, which undoes what it alone has."""
        self.group.returns.pop(node.name, None)
        try:
            await self.supervisor.start(node.name)
        except ServerFailed as failure:
            return f"has not come back: {failure.message.splitlines()[0]}"
        way = self.group.returns.get(node.name, "a plain start")
        return f"streams, by {way}" if await self._streams(node) else f"does not stream yet, after {way}"

    async def _streams(self, node: Node) -> bool:
        """Wait until it receives the new timeline."""
        end = time.monotonic() + self.group.knobs.follow_s
        while time.monotonic() < end:
            seen = await look(node, within_s=self.group.knobs.look_s)
            if not seen.answers:
                return False
            if seen.is_standby and seen.timeline is not None and seen.timeline == self.timeline:
                return True
            await asyncio.sleep(POLL_S)
        return False


def point(supervisor: Supervisor, node: Node, settings: Mapping[str, str]) -> None:
    """Change a node's settings; at once when it runs."""
    node.configure(settings)
    child = supervisor.server(node.name).child
    if child is not None and not child.exited.is_set():
        child.send(signal.SIGHUP, whole=False)
