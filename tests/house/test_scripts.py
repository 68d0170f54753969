"""What is not Python: the scripts behind `make`, the lock file, and what a wheel must bring beside its modules."""

import fnmatch
import os
import re
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared", "workers", "migrations")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of commands that a script finds first."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    return folder


def stub(folder: Path, name: str, text: str) -> Path:
    """A command that does what the text says."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def sh(script: Path, *, stubs: Path, here: Path | None = None, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a script as from a terminal: a signal that was ignored before it started could not be trapped."""
    return subprocess.run(
        ["sh", str(script)], cwd=here, env={"PATH": f"{stubs}:{os.defpath}", **env}, capture_output=True, text=True,
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in SIGNALS],
    )  # fmt: skip


def test_ci_runs_what_the_readme_says() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("script", ["deploy/install", "deploy/servers", ".ci/run"])
def test_scripts_are_read_by_the_shell_that_runs_them(script: str) -> None:
    shell = (ROOT / script).read_text().splitlines()[0].removeprefix("#!").split()[-1].rpartition("/")[-1]
    done = subprocess.run([shell, "-n", str(ROOT / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ordinary_user_is_told_which_packages_are_missing(stubs: Path) -> None:
    stub(stubs, "id", "echo 1000")
    stub(stubs, "ls", "exit 1")
    done = sh(ROOT / "deploy" / "servers", stubs=stubs)
    assert done.returncode == 1
    found = re.fullmatch(
        r'fleet: missing servers: run "apt-get install([a-z -]*)" as root, then try again\n', done.stderr
    )
    assert found
    assert {"rabbitmq-server", "postgresql"} <= set(found[1].split())


@pytest.mark.parametrize("signum", SIGNALS)
def test_an_installation_that_is_interrupted_leaves_nothing_behind(
    stubs: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    guard, temporary = tmp_path / "policy-rc.d", tmp_path / "tmp"
    temporary.mkdir()
    script = tmp_path / "servers"
    script.write_text((ROOT / "deploy" / "servers").read_text().replace("/usr/sbin/policy-rc.d", str(guard)))
    stub(stubs, "id", "echo 0")
    stub(stubs, "ls", "exit 1")
    stub(stubs, "apt-get", f"[ -x {guard} ] && touch {tmp_path}/guarded; kill -{signum} $PPID")
    done = sh(script, stubs=stubs, TMPDIR=str(temporary))
    assert done.returncode == 128 + signum
    assert (tmp_path / "guarded").exists(), "services would have been started"
    assert not guard.exists()
    assert list(temporary.iterdir()) == []


def test_the_command_can_be_installed_and_run_where_a_path_has_a_space(stubs: Path, tmp_path: Path) -> None:
    here = tmp_path / "a b"
    here.mkdir()
    for lock in ROOT.glob("requirements*.lock"):
        (here / lock.name).write_text(lock.read_text())
    python = stub(
        stubs,
        "python",
        'case "$1" in -c) echo "$PWD";; -m) [ "$2" != venv ] || { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; };;'
        " *) printf '%s|' \"$@\";; esac",
    )
    done = sh(ROOT / "deploy" / "install", stubs=stubs, here=here, PYTHON=str(python), VENV=".venv")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"fleet: \[(\d)/4\] ", done.stdout) == ["1", "2", "3", "4"]
    command = here / ".venv" / "bin" / "fleet"
    ran = subprocess.run([command, "down", "--dir", "x y"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{command}|down|--dir|x y|"
    compile(command.read_text(), "fleet", "exec")


def test_a_wheel_brings_every_file_that_is_not_a_module() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                matching = [one for one in patterns if fnmatch.fnmatch(path.name, one)]
                assert matching, f"{path.relative_to(ROOT)} is not in a wheel: see package-data in pyproject.toml"


@pytest.mark.parametrize("lock", [path.name for path in sorted(ROOT.glob("requirements*.lock"))])
def test_every_locked_dependency_has_a_version_and_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line[:80]


def test_the_lock_file_is_the_only_one() -> None:
    assert not (ROOT / "uv.lock").exists()
