"""One PostgreSQL node: its port, its folder, and the marks in it that decide what it may be when it starts."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Own = Callable[[Path], None]
"""Gives a file to the user that servers run as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A name, an address, a folder; which role it has is never written here."""

    name: str
    port: int
    folder: Path
    own: Own

    @property
    def cluster(self) -> Path:
        """PostgreSQL's data folder."""
        return self.folder / "cluster"

    @property
    def is_made(self) -> bool:
        """Whether its data folder was completed once."""
        return self._made.exists()

    @property
    def is_fenced(self) -> bool:
        """Whether it may hold rows that its successor has not: it has to be taken back before it may serve."""
        return self._fence.exists()

    @property
    def is_standby(self) -> bool:
        """Whether PostgreSQL, started on its folder by whomever, comes up read-only."""
        return self._standby.exists()

    def set_made(self, made: bool) -> None:
        """Remember that the data folder is complete, or that it is not."""
        self._made.touch() if made else self._made.unlink(missing_ok=True)

    def fence(self, reason: str) -> None:
        """From now on every start of it is read-only, by hand too, and ours takes it back first."""
        self._write(self._fence, reason + "\n")
        self.set_standby(True)

    def lift_fence(self) -> None:
        """It may start as what its folder says."""
        self._fence.unlink(missing_ok=True)

    def set_standby(self, standby: bool) -> None:
        """Write or remove the mark that keeps it in recovery."""
        self._write(self._standby, "") if standby else self._standby.unlink(missing_ok=True)

    def configure(self, settings: Mapping[str, str]) -> None:
        """Put settings into the file that PostgreSQL reads last; a reload or a start applies them."""
        path = self.cluster / "postgresql.auto.conf"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        self._write(path, with_settings(before, settings))

    @property
    def _made(self) -> Path:
        return self.folder / "cluster.done"

    @property
    def _fence(self) -> Path:
        return self.folder / "fenced"

    @property
    def _standby(self) -> Path:
        return self.cluster / "standby.signal"

    def _write(self, path: Path, text: str) -> None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.own(Path(name))
        Path(name).replace(path)


def with_settings(text: str, settings: Mapping[str, str]) -> str:
    """The text of a PostgreSQL configuration file with these settings in place of its own of that name."""
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in settings]
    quoted = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    return "".join(f"{line}\n" for line in [*kept, *(f"{name} = '{value}'" for name, value in quoted.items())])
