"""Lines of structlog and of the standard library that go to one place."""

import subprocess
import sys

TWO = """
import logging, sys, threading
import structlog
from shared.telemetry.logs import setup_logs

setup_logs(style="json")
log, plain = structlog.get_logger(), logging.getLogger("plain")
threads = [threading.Thread(target=lambda to=to: [to.info("told") for _ in range(2000)]) for to in (log, plain)]
sys.setswitchinterval(1e-6)
for one in threads:
    one.start()
for one in threads:
    one.join()
"""


def test_no_line_runs_into_another_however_many_loggers_write_at_once() -> None:
    done = subprocess.run([sys.executable, "-u", "-c", TWO], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 4000
    assert sum(line.startswith("{") and line.endswith("}") for line in lines) == 2000
    assert sum(line.endswith("INFO plain told") for line in lines) == 2000
