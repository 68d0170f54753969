"""The whole suite in two processes at once: fleets that wait for real time in one, all else in the other.

`python -m tests.side_by_side`. The first one's output comes as it is written, the other's as soon as it has ended. A
test file that no pattern names runs in the first. Exits with 0 only when both do.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

TESTS = Path(__file__).resolve().parent
BESIDE = (
    *("chaos", "contract", "house", "property", "unit"),
    *(f"integration/test_{name}*.py" for name in ("absence", "cancel_", "chat_", "cli", "dead_", "demo", "flower")),
    *(f"integration/test_{name}*.py" for name in ("fork", "keeper_l", "keeper_r", "keeper_s", "keeper_t", "ledger_")),
    *(f"integration/test_{name}*.py" for name in ("llm_complaints", "llm_ladder", "llm_stream", "memory", "places")),
    *(f"integration/test_{name}*.py" for name in ("producer", "retrieval", "schedules", "sealed", "second_try")),
    *(f"integration/test_{name}*.py" for name in ("migrations", "priorities", "shards", "sync_units")),
    *(f"integration/test_{name}*.py" for name in ("steering", "supervisor", "vault", "verify", "way_of")),
)
"""What runs beside the first process, below `tests`."""
LOOK_EVERY_S = 0.2


def paths() -> list[str]:
    """Folders and files of the second process."""
    return [str(path) for pattern in BESIDE for path in sorted(TESTS.glob(pattern))]


def main() -> int:
    """Run both; Ctrl-C and SIGTERM end both in good order."""
    beside = paths()
    with tempfile.TemporaryFile() as told:
        second = _pytest(["-p", "no:cacheprovider", *beside], stdout=told.fileno())
        first = _pytest([str(TESTS), *(f"--ignore={path}" for path in beside)])
        running = [first, second]
        signal.signal(signal.SIGTERM, lambda *_: _interrupt(running))
        try:
            while running:
                time.sleep(LOOK_EVERY_S)
                if second in running and second.poll() is not None:
                    _say(told)
                running = [one for one in running if one.poll() is None]
        except KeyboardInterrupt:  # a terminal has told them, too
            for one in (first, second):
                one.wait()
            if second in running:
                _say(told)
            return 130
    return first.returncode or second.returncode


def _pytest(words: Sequence[str], *, stdout: int | None = None) -> "subprocess.Popen[bytes]":
    stderr = None if stdout is None else subprocess.STDOUT
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *words], cwd=TESTS.parent, stdout=stdout, stderr=stderr
    )


def _interrupt(running: Sequence["subprocess.Popen[bytes]"]) -> None:
    for one in running:
        one.send_signal(signal.SIGINT)
    raise KeyboardInterrupt


def _say(told: IO[bytes]) -> None:
    told.seek(0)
    sys.stdout.buffer.write(b"\n\nbeside:\n" + told.read())
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
