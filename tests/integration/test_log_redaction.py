"""FLEET_LOG_REDACT reaches every process: a hook that cannot be had refuses to start, one that can is asked."""

import os
import subprocess
import sys

import pytest

from workers.ops.surroundings import ROOT

KEEPER = ("-m", "workers.keeper.main")
WORKER = ("-m", "celery", "-A", "workers.agents.main", "worker")


@pytest.mark.parametrize("process", [KEEPER, WORKER], ids=["keeper", "worker"])
def test_a_hook_that_is_not_there_refuses_to_start_and_names_the_variable(process: tuple[str, ...]) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    env |= {"FLEET_LOG_REDACT": "tests.integration.sealed_agents:nothing", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *process], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(
        "FLEET_LOG_REDACT: module 'tests.integration.sealed_agents' has no function 'nothing'"
    )
