"""`fleet demo` to its end, cut off in the middle, and with a model that does not answer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleets import UNHURRIED
from tests.integration.live import eventually
from workers.ops.run_dir import RunDir
from workers.ops.surroundings import ROOT

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("FLEET_")},
    "PYTHONPATH": str(ROOT),
    **UNHURRIED,
}


@pytest.fixture
def here(run_folder: Callable[[], Path]) -> Iterator[Path]:
    """A folder to run the demo in; afterwards nothing may be left of it, on disk or in memory."""
    folder = run_folder().parent
    yield folder
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


def start_demo(*words: str, here: Path, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "workers.ops.main", "demo", *words],
        cwd=here,
        env={**ENVIRONMENT, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Every process whose output goes to a log below `folder`, removed or not."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(folder) in str((process / "fd" / "1").readlink()):
                found.append((process / "cmdline").read_text("utf-8").replace("\0", " "))
        except OSError:
            continue
    return found


def statuses(folder: Path) -> dict[str, str]:
    rows: list[dict[str, Any]] = RunDir(folder / ".fleet" / "demo").read_state().get("servers", [])
    return {row["name"]: row["status"] for row in rows}


def test_demo_answers_loses_a_worker_and_repeats_no_completed_step(here: Path) -> None:
    demo = start_demo("--json", here=here)
    said, complaints = demo.communicate(timeout=600)
    assert (demo.returncode, complaints) == (0, "")
    story = json.loads(said)
    assert "a task accepted once is finished once" in story["answer"]
    assert "corpus/what-the-fleet-is.md" in story["chat"]["sources"]
    assert (story["chat"]["level"], story["chat"]["output_tokens"] > 5) == ("L0", True)
    crash = story["crash"]
    assert crash["state"] == "succeeded"
    assert crash["attempt"] >= 2
    assert crash["repeated_completed_steps"] == 0
    assert crash["steps_read_back"] >= crash["steps_done_before_kill"] >= 2
    assert [step["name"] for step in crash["steps"]] == ["collect", "check", "compare", "draft", "headline"]
    assert {step["name"] for step in crash["steps"] if step["executions"] > 1} >= set(crash["steps_in_doubt"])
    assert story["seconds"] > 0


@pytest.mark.parametrize(
    ("signum", "is_time"),
    [
        (signal.SIGINT, lambda seen: "ready" in seen.values()),
        (signal.SIGTERM, lambda seen: seen.get("worker-1") == "ready"),
    ],
    ids=["while-servers-start", "while-a-task-runs"],
)
def test_an_interrupted_demo_stops_everything_and_says_so(
    here: Path, signum: signal.Signals, is_time: Callable[[dict[str, str]], bool]
) -> None:
    demo = start_demo(here=here)
    eventually(lambda: is_time(statuses(here)), within_s=120)
    demo.send_signal(signum)
    said, complaints = demo.communicate(timeout=300)
    assert demo.returncode == 130
    assert said.startswith("\nA private fleet on this machine\n")
    assert complaints == "Interrupted: everything that had been started is stopped.\n"


def test_a_demo_that_fails_says_why_and_stops_everything(here: Path) -> None:
    demo = start_demo(here=here, env={"FLEET_LLM_BASE_URL": "http://127.0.0.1:1/v1"})
    said, complaints = demo.communicate(timeout=600)
    assert demo.returncode == 1
    assert "A question" in said
    assert complaints.startswith("Error: No model answered: ")
    assert "127.0.0.1-1 could not be reached" in complaints
    assert complaints.count("\n") == 1
