"""PostgreSQL's nodes for one benchmark alone: a primary and its replicas, in a folder that is removed afterwards."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.nodes import nodes_in
from workers.ops.background import BackgroundSupervisor


@contextmanager
def own_nodes() -> Iterator[BackgroundSupervisor]:
    """A primary and two replicas, asynchronous."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-bench-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with nodes_in(folder / "run") as servers:
            yield servers
    finally:
        shutil.rmtree(folder, ignore_errors=True)
