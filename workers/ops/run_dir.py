"""The folder of one run: data and logs of every server, the state file, and the lock that allows one supervisor."""

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from shared.errors import Misconfigured
from workers.ops.privileges import Privileges


class RunDir:
    """Folders and files under `base`; created by `open`, used by one supervisor at a time."""

    def __init__(self, base: Path) -> None:
        self.base = base.resolve()  # logs are recognised by their true path
        self.data = self.base / "data"
        self.logs = self.base / "logs"
        self.state = self.base / "state.json"
        self._lock: int | None = None

    def open(self, *, free_bytes: int) -> None:
        """Create the folders and take the lock.

        Raises: Misconfigured when the folder cannot be written, the disk is full, or another supervisor uses it.
        """
        try:
            for folder in (self.base, self.data, self.logs):
                if not folder.exists():
                    folder.mkdir(parents=True)
                    folder.chmod(0o755)  # servers run as another user and must pass, whatever the umask says
            lock = os.open(self.base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Misconfigured(
                f"The folder {self.base} cannot be written ({error.strerror}); choose another with --dir.",
                folder=str(self.base),
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise Misconfigured(
                f"Another supervisor already runs in {self.base}; see `fleet status`, stop it with `fleet down`.",
                folder=str(self.base),
            ) from error
        self._lock = lock
        free = shutil.disk_usage(self.base).free
        if free < free_bytes:
            raise Misconfigured(
                f"The disk of {self.base} has {free >> 20} MiB left and the servers need {free_bytes >> 20} MiB; "
                "free some space or choose another folder with --dir.",
                folder=str(self.base),
            )

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, name: str) -> Path:
        """The log file of one server."""
        return self.logs / f"{name}.log"

    def folder(self, name: str, *, privileges: Privileges) -> Path:
        """Make the data folder of one server, owned by the user it runs as."""
        path = self.data / name
        path.mkdir(mode=0o700, exist_ok=True)
        privileges.own(path)
        return path

    def read_state(self) -> dict[str, Any]:
        """What the last supervisor wrote; empty when there was none or it is unreadable."""
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state file in one step: readers see the old one or the new one.

        Raises: Misconfigured when the disk is full or the folder became unwritable.
        """
        try:
            handle, name = tempfile.mkstemp(dir=self.base, prefix="state.", suffix=".new")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(state, file, indent=1)
                Path(name).chmod(0o644)
                Path(name).replace(self.state)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            raise Misconfigured(f"The state file {self.state} cannot be written: {error.strerror}.") from error
