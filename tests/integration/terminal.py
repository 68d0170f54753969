"""`fleet …` as a person or a script types it: as a process in a folder, or here and now, which is quicker."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog
from structlog.testing import capture_logs

from shared.client import FleetClient
from workers.ops import main
from workers.ops.surroundings import ROOT

WITHOUT_FLEET = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}


def fleet(
    *words: str, here: Path | None = None, at: Path | None = None, env: Mapping[str, str] | None = None, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a command; a stack trace fails the test.

    Args:
        here: A folder, where it runs as a process of its own.
        at: A folder, where it runs in this process; neither: in this process, wherever that is.
    """
    environment = {**WITHOUT_FLEET, "PYTHONPATH": str(ROOT), **(env or {})}
    if here is None:
        done = _typed(words, environment, at or Path(), stdin)
    else:
        done = subprocess.run(
            [sys.executable, "-m", "workers.ops.main", *words], cwd=here, env=environment, input=stdin,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return done


def _typed(
    words: tuple[str, ...], environment: Mapping[str, str], folder: Path, stdin: str
) -> "subprocess.CompletedProcess[str]":
    """All but the process and its logging: entry point, exit code and all streams are the real ones."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0

    def connect(addresses: Mapping[str, str]) -> FleetClient:
        os.environ.update(addresses)
        return FleetClient()

    with (
        chdir(folder),
        patch.dict(os.environ, environment, clear=True),
        patch.object(sys, "argv", ["fleet", *words]),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        patch.object(main, "connect", connect),
        patch.object(structlog, "configure"),  # logs set up for a command alone would stay so for every later test
        capture_logs(),  # a command is silent on what its client logs
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def fleet_json(
    *words: str, here: Path | None = None, at: Path | None = None, env: Mapping[str, str] | None = None,
    stdin: str = "", code: int = 0,
) -> Any:  # fmt: skip
    """What a command prints for machines."""
    done = fleet(*words, "--json", here=here, at=at, env=env, stdin=stdin)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def refusal(done: "subprocess.CompletedProcess[str]", *, code: int) -> str:
    """The one sentence of a command that did nothing."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1, "one sentence"
    return done.stderr
