"""Lock files of dead processes are removed; those of living ones stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.ops.census import remove_stale_lock


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "postmaster.pid"


def test_lock_of_a_zombie_is_removed(lock_file: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and nobody has collected it
    lock_file.write_text(f"{child.pid}\n/data\n")
    os.kill(child.pid, 0)  # what PostgreSQL asks: the zombie still answers
    assert remove_stale_lock(lock_file)
    assert not lock_file.exists()
    child.wait()


def test_lock_of_a_living_process_stays(lock_file: Path) -> None:
    lock_file.write_text(f"{os.getpid()}\n/data\n")
    assert not remove_stale_lock(lock_file)
    assert lock_file.exists()


@pytest.mark.parametrize("text", ["", "no number\n"])
def test_lock_that_cannot_be_read_stays(lock_file: Path, text: str) -> None:
    lock_file.write_text(text)
    assert not remove_stale_lock(lock_file)
    assert lock_file.exists()


def test_missing_lock_is_no_error(lock_file: Path) -> None:
    assert not remove_stale_lock(lock_file)
