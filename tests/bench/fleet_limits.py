"""`fleet_limits.used`, `fleet_limits.exceeded`: how well twelve processes together keep one limit of 600 requests/min.

Every process calls as often as it may from two slots; a refused caller comes back when it is told to. For a whole
minute after all have started: what was used of the limit, and by how much the fullest 60 s (of every start) exceed it.
Counted from what each process wrote down when it was let through, on one clock.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.limited_caller import LIMIT
from tests.bench.site import BenchFailed, Site, fresh_tenant, say
from workers.ops.surroundings import ROOT

PROCESSES = 12
SETTLE_S = 2.0
"""From the start of the last process until the burst of the beginning is over."""
WINDOW_S = 60.0
START_S = 120.0
AFTER_S = 8.0
"""More windows to look at."""


def measure(site: Site) -> list[Figure]:
    """Start the processes and count."""
    with tempfile.TemporaryDirectory(prefix="fleet-limits-") as folder:
        began, times = run(Path(folder), fresh_tenant("limits"))
    used = sum(began <= at < began + WINDOW_S for at in times) / LIMIT * 100
    exceeded = (fullest(times) / LIMIT - 1) * 100
    say(f"  {used:.1f} % used in the minute, the fullest minute is {exceeded:+.2f} % of the limit")
    what = f"{PROCESSES} processes at one limit of {LIMIT}/min"
    return [
        Figure(name="fleet_limits.used", what=f"{what}: used", value=used, unit="%", goal=98.0, better="higher"),
        Figure(
            name="fleet_limits.exceeded", what=f"{what}: exceeded in any 60 s", value=exceeded, unit="%", goal=2.0,
            better="lower",
        ),
    ]  # fmt: skip


def run(folder: Path, key: str) -> tuple[float, list[float]]:
    """When the measured minute began, and when each call was let through (monotonic)."""
    argv = [sys.executable, "-m", "tests.bench.limited_caller", str(folder), key, os.environ["FLEET_MEMORY_REDIS_URL"]]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(argv, cwd=ROOT, env=env) for _ in range(PROCESSES)]
    try:
        end = time.monotonic() + START_S
        while len(list(folder.glob("*.ready"))) < PROCESSES:
            if time.monotonic() > end:
                raise BenchFailed("the processes did not start")
            time.sleep(0.1)
        (folder / "go").touch()
        began = time.monotonic() + SETTLE_S
        time.sleep(SETTLE_S + WINDOW_S + AFTER_S)
    finally:
        (folder / "stop").touch()
        (folder / "go").touch()
        for process in processes:
            process.wait(60.0)
    reports = [json.loads(path.read_text("utf-8")) for path in folder.glob("*.times")]
    if len(reports) < PROCESSES or any(report["alone"] for report in reports):
        raise BenchFailed("a process died or lost Redis: the limit was not shared")
    return began, sorted(at for report in reports for at in report["times"])


def fullest(times: list[float]) -> int:
    """Most calls in any 60 s."""
    return max(bisect_left(times, start + WINDOW_S) - first for first, start in enumerate(times))
