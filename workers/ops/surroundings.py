"""What every process of a run gets from its surroundings: folders, ports, user, and a clean environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import workers
from workers.ops.ports import PortBook
from workers.ops.privileges import Privileges
from workers.ops.run_dir import RunDir

ROOT = Path(workers.__file__).resolve().parents[1]
"""Where the packages and the migrations lie: the clone, or site-packages."""

LOOPBACK = "127.0.0.1,localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Handed to every recipe."""

    run: RunDir
    ports: PortBook
    privileges: Privileges
    inherited: Mapping[str, str]
    """The caller's environment: Python processes get it, servers do not."""

    project: Path
    """Working folder of Python processes, so that agents of the caller's project can be imported."""

    def folder(self, name: str) -> Path:
        """The data folder of one server, made and owned."""
        return self.run.folder(name, privileges=self.privileges)

    def server_env(self, name: str) -> dict[str, str]:
        """The whole environment of a server: nothing of the caller's (PGPORT, RABBITMQ_* ...) leaks into it."""
        return {
            "PATH": self.inherited.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "HOME": str(self.folder(name)),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }

    def python_env(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of a Python process: the caller's, with the fleet's addresses, loopback never proxied."""
        path = [str(ROOT), *filter(None, [self.inherited.get("PYTHONPATH")])]
        passed_by = ",".join(filter(None, [self.inherited.get("NO_PROXY") or self.inherited.get("no_proxy"), LOOPBACK]))
        foreign = self.privileges.uid != os.geteuid()  # the caller's home is closed to another user
        home = {"HOME": str(self.folder("home"))} if foreign else {}
        return {
            **{name: value for name, value in self.inherited.items() if name != "NOTIFY_SOCKET"},  # that one is ours
            **home,
            "PYTHONPATH": ":".join(path),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_PROXY": passed_by,
            "no_proxy": passed_by,
            **extra,
        }
