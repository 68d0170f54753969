"""The local model as an OpenAI-compatible HTTP server: llama.cpp's own, on loopback, on the CPU.

Started as `python -m workers.ops.model_server --port N`; ready when GET /health answers 200.
"""

import argparse
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from shared.errors import FleetError
from workers.ops.recipes.model import NAME, weights

SLOTS = 4
CONTEXT_TOKENS = 2048
PROMPT_THREADS = 2
ANSWER_THREADS = 1
"""Two threads wait for each other at every token: beside any other busy process that is ten times slower than one."""


def parameters(*, model: Path, port: int, name: str, library: Any) -> Any:
    """Fill llama.cpp's parameters: SLOTS parallel requests of CONTEXT_TOKENS each."""
    chosen = library.CommonParams()
    chosen.model.path = str(model)
    chosen.model_alias = {name}
    chosen.hostnames = ["127.0.0.1"]
    chosen.port = port
    chosen.n_ctx = CONTEXT_TOKENS * SLOTS
    chosen.n_parallel = SLOTS
    chosen.cpuparams.n_threads = ANSWER_THREADS
    chosen.cpuparams_batch.n_threads = PROMPT_THREADS
    chosen.cache_ram_mib = 256
    chosen.sampling.temp = 0.0  # unless a request asks for more: a model this small only loses by rolling dice
    chosen.endpoint_metrics = True
    chosen.verbosity = 2
    return chosen


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="loopback port")
    parser.add_argument("--name", default=NAME, help="the model's name in answers")
    wanted = parser.parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    try:
        model = weights()
    except FleetError as error:
        sys.exit(error.message)
    library = import_module("xllamacpp")  # an optional dependency without type stubs
    server = library.Server(parameters(model=model, port=wanted.port, name=wanted.name, library=library))
    print(f"serving {model.name} on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
