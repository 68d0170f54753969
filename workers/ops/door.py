"""How commands reach a fleet: the one that runs in a folder, or the one that the environment names."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import Misconfigured
from workers.ops.inspection import supervisor_of
from workers.ops.run_dir import RunDir

if TYPE_CHECKING:  # importing it takes a second, which `fleet status` and `fleet down` need not pay
    from shared.client import FleetClient

USUAL_FOLDER = Path(".fleet")
ADDRESSES = ("FLEET_DB_URL", "FLEET_BROKER_URL")
Where = Annotated[
    Path | None, typer.Option("--dir", help="Folder of a running fleet; .fleet, unless FLEET_DB_URL is set.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What main hands to every command, as the context's object."""

    environment: Mapping[str, str]
    """The caller's environment."""

    check: Callable[[], object]
    """Checks every FLEET_ variable. Raises: Misconfigured."""

    check_all: Callable[[], object]
    """And those of every process of a fleet, and the file that FLEET_LLM_CONFIG names. Raises: Misconfigured."""

    connect: Callable[[Mapping[str, str]], "FleetClient"]
    """Makes a client of the environment plus these variables. Raises: Misconfigured."""

    @contextmanager
    def client(self, folder: Path | None) -> Iterator["FleetClient"]:
        """A client of the fleet in `folder`, or of the environment's, closed at the end.

        Raises: Misconfigured for a wrong variable, or when there is no fleet to reach.
        """
        self.check()
        with self.client_at(addresses(folder, environment=self.environment)) as client:
            yield client

    @contextmanager
    def client_at(self, found: Mapping[str, str]) -> Iterator["FleetClient"]:
        """A client of the fleet at these addresses, closed at the end."""
        client = self.connect(found)
        try:
            yield client
        finally:
            client.close()


def addresses(folder: Path | None, *, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The variables to add to the environment; none when it names the servers itself and no folder was asked for.

    Raises: Misconfigured, with the remedy, when no fleet runs in the folder.
    """
    if folder is None and any(environment.get(name) for name in ADDRESSES):
        return {}
    run = RunDir(folder or USUAL_FOLDER)
    if supervisor_of(run) is None:
        where = "here" if folder is None else f"in {run.base}"
        raise Misconfigured(
            f"No fleet runs {where}: start one with `fleet up`, or set FLEET_DB_URL and FLEET_BROKER_URL."
        )
    found = run.read_state().get("env", {})
    return {name: str(value) for name, value in found.items()}
