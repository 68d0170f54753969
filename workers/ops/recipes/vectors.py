"""Milvus Lite's server: the embedded vector store, reached by the same client as Milvus."""

import sys
from importlib.util import find_spec

from shared.errors import Misconfigured
from workers.ops.probes import GrpcProbe
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import Surroundings


def server(around: Surroundings) -> ServerSpec:
    """One server on loopback; its data survive a restart."""
    if find_spec("milvus_lite") is None:
        raise Misconfigured("Milvus Lite is missing; run `pip install milvus-lite`.")
    port, folder = around.ports.port("vectors"), around.folder("vectors")
    return ServerSpec(
        name="vectors",
        kind="Milvus Lite",
        argv=(
            *(sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder / "data")),
            *("--host", "127.0.0.1", "--port", str(port)),
        ),
        env=around.python_env({}),
        cwd=folder,
        probe=GrpcProbe(port),
        start_timeout_s=60.0,
        url=f"http://127.0.0.1:{port}",
    )
