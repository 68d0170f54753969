"""The supervisor's end of the guard: starts it, tells it what to kill one day, replaces it if it dies."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import workers
from workers.ops.census import Identity


class Watchdog:
    """Owner of the only write end of the guard's pipe."""

    def __init__(self, *, log: Path) -> None:
        self._log = log
        self._facts: list[dict[str, Any]] = []
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The guard's pid."""
        return self._process.pid

    def cover(self, identity: Identity, *, log: Path) -> None:
        """From now on this server dies with the supervisor."""
        self._tell({"pid": identity.pid, "started_ticks": identity.started_ticks, "log": str(log)})

    def cover_folder(self, folder: Path) -> None:
        """From now on this folder is removed when the supervisor dies."""
        self._tell({"folder": str(folder)})

    def close(self) -> None:
        """End the guard; whatever was covered and still lives, it kills."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, fact: dict[str, Any]) -> None:
        self._facts.append(fact)
        try:
            self._write([fact])
        except BrokenPipeError:  # somebody killed the guard: a new one has to learn everything
            self._process.wait()
            self._process = self._start()
            self._write(self._facts)

    def _write(self, facts: list[dict[str, Any]]) -> None:
        pipe = self._process.stdin
        if pipe is not None:
            pipe.write("".join(json.dumps(fact) + "\n" for fact in facts).encode())
            pipe.flush()

    def _start(self) -> subprocess.Popen[bytes]:
        root = Path(workers.__file__).parents[1]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "workers.ops.guard"], stdin=subprocess.PIPE, stdout=log, stderr=log,
                env={"PYTHONPATH": str(root)}, cwd="/", start_new_session=True, bufsize=0,
            )  # fmt: skip
