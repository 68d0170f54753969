"""One child process: started in its own session, its exit noticed at once through a pidfd."""

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.ops.census import Identity, identify, members, send


class Child:
    """A running process; make it with `spawn`, on the loop's own thread (the kernel ties its life to that thread)."""

    def __init__(self, process: subprocess.Popen[bytes], *, identity: Identity, log: Path) -> None:
        self.identity = identity
        self.exited = asyncio.Event()
        self._process = process
        self._log = str(log)
        self._handle = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._handle, self._on_exit)

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        code = self._process.returncode
        if code is None:
            return "is running"
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"

    @property
    def succeeded(self) -> bool:
        """Whether it exited with code 0."""
        return self._process.returncode == 0

    def crowd(self) -> list[Identity]:
        """The process and its helpers, those that still live."""
        return members(self.identity, log=self._log)

    def send(self, signum: int, *, whole: bool) -> None:
        """Signal the process, or it and all its helpers."""
        for identity in self.crowd() if whole else [self.identity]:
            send(identity, signum)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self._process.wait()
        self.exited.set()


def spawn(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Child:
    """Start a process whose output is appended to `log`.

    Raises: OSError when the command cannot be run.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), cwd=cwd,
            start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(output)
    identity = identify(process.pid) or Identity(pid=process.pid, started_ticks=0)  # a zombie has no identity any more
    return Child(process, identity=identity, log=log)
