"""Loopback ports for servers: pinned by the operator, remembered from the last run, or free ones of our own choice.

Free ports come from below the kernel's ephemeral range. A port out of that range may be taken by any outgoing
connection while its server is down, and a client that retries it may even connect to itself (TCP simultaneous open).
"""

import random
import socket
from collections.abc import Mapping
from pathlib import Path

from shared.errors import Misconfigured

LOWEST = 10_000
TRIES = 500
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortBook:
    """Gives each server its port and remembers which."""

    def __init__(self, *, pinned: Mapping[str, int] | None = None, remembered: Mapping[str, int] | None = None) -> None:
        self._pinned = dict(pinned or {})
        self._remembered = dict(remembered or {})
        self.given: dict[str, int] = {}

    def port(self, name: str) -> int:
        """Give the port called `name`, the same one each time it is asked for.

        Raises: Misconfigured when a pinned port is taken.
        """
        if name not in self.given:
            self.given[name] = self._choose(name)
        return self.given[name]

    def refuse_unknown_pins(self) -> None:
        """Raises: Misconfigured when a port was pinned for a server that never asked for one."""
        for name in self._pinned.keys() - self.given.keys():
            known = ", ".join(sorted(self.given))
            raise Misconfigured(f"There is no server named {name} to pin; known: {known}.", server=name)

    def _choose(self, name: str) -> int:
        pinned = self._pinned.get(name)
        if pinned is not None:
            if not is_free(pinned):
                raise Misconfigured(
                    f"Port {pinned} for {name} is taken on 127.0.0.1; stop what listens there or pin another port.",
                    server=name,
                    port=pinned,
                )
            return pinned
        taken = set(self.given.values()) | set(self._pinned.values())
        remembered = self._remembered.get(name)
        if remembered is not None and remembered not in taken and is_free(remembered):
            return remembered
        return free_port(taken=taken)


def free_port(*, taken: set[int]) -> int:
    """Find a loopback port that nothing listens on, outside the ephemeral range."""
    for _ in range(TRIES):
        port = random.randrange(LOWEST, _ephemeral_from())
        if port not in taken and is_free(port):
            return port
    raise Misconfigured("No free loopback port was found below the ephemeral range; stop some servers first.")


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _ephemeral_from() -> int:
    try:
        lowest = int(RANGE_FILE.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
    return lowest if lowest > LOWEST + 1_000 else 32_768
