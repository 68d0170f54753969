"""Where processes say READY=1: one datagram socket a server, in a short-named folder of the run's user."""

import socket
import tempfile
from pathlib import Path

from workers.ops.privileges import Privileges
from workers.ops.probes import NotReady


class Mailboxes:
    """The folder of sockets. Outside the run's folder: a socket's path may not pass 108 bytes, a run's folder may."""

    def __init__(self, privileges: Privileges) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))
        privileges.own(self.folder)
        self._privileges = privileges
        self._sockets: dict[str, socket.socket] = {}

    def open(self, server: str) -> Path:
        """Make a fresh socket for a server that is about to start; notes of its former life are dropped."""
        self.close(server)
        path = self.folder / server[:40]
        box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        box.bind(str(path))
        self._privileges.own(path)
        self._sockets[server] = box
        return path

    def check(self, server: str) -> None:
        """Return when the server has said READY=1. Raises: NotReady."""
        while True:
            try:
                note = self._sockets[server].recv(4096)
            except BlockingIOError:
                raise NotReady("it has not said READY=1 yet") from None
            if b"READY=1" in note.split(b"\n"):
                return

    def close(self, server: str) -> None:
        """Remove one server's socket."""
        box = self._sockets.pop(server, None)
        if box is not None:
            path = Path(box.getsockname())
            box.close()
            path.unlink(missing_ok=True)

    def close_all(self) -> None:
        """Remove the folder and all sockets."""
        for server in list(self._sockets):
            self.close(server)
        self.folder.rmdir()
