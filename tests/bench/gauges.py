"""What the kernel says about one process: CPU time and resident memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kb(pid: int) -> float:
    """Resident memory in kB of 1000 bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * PAGE / 1000


def wait_quiet(pid: int, *, load: float = 0.05, within_s: float = 60.0) -> None:
    """Return once a process has used less than `load` of a CPU for a second; give up silently after `within_s`."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        before = cpu_s(pid)
        time.sleep(1.0)
        if cpu_s(pid) - before < load:
            return


class Peak:
    """The highest reading of a gauge while `with` lasts."""

    def __init__(self, gauge: Callable[[], float], *, every_s: float = 0.05) -> None:
        self.value = 0.0
        self._gauge = gauge
        self._every_s = every_s
        self._ended = Event()
        self._thread = Thread(target=self._watch, name="peak", daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self.value = max(self.value, self._gauge())
