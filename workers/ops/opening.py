"""Opens a run on this machine: folder, lock, user, ports - everything a topology and a supervisor stand on."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import typer

from workers.ops import census
from workers.ops.knobs import SupervisorKnobs
from workers.ops.ports import PortBook
from workers.ops.privileges import settle
from workers.ops.run_dir import RunDir
from workers.ops.surroundings import Surroundings


def open_site(
    folder: Path,
    *,
    inherited: Mapping[str, str],
    pinned_ports: Mapping[str, int] | None = None,
    project: Path | None = None,
    knobs: SupervisorKnobs | None = None,
) -> Surroundings:
    """Open `folder` for one supervisor; `surroundings.run.close()` releases it.

    Args:
        inherited: The environment that Python processes get.
        pinned_ports: Ports by server name that must be exactly these.
        project: Working folder of Python processes.
    Raises: Misconfigured: unwritable folder, full disk, folder in use, privileges that cannot be shed.
    """
    run = RunDir(folder)
    run.open(free_bytes=(knobs or SupervisorKnobs()).free_bytes)
    try:
        privileges = settle(_read_by_all(run), owner=run.base)
        ports = PortBook(pinned=pinned_ports, remembered=run.read_state().get("ports"))
        return Surroundings(
            run=run, ports=ports, privileges=privileges, inherited=inherited, project=project or Path.cwd()
        )
    except BaseException:
        run.close()
        raise


def _read_by_all(run: RunDir) -> list[Path]:
    """What every process needs to read: the interpreter, the libraries, our code, the run's folder."""
    files = [sys.executable, os.__file__, typer.__file__, census.__file__]
    return [*(Path(file) for file in files), run.data]
