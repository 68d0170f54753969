"""Eight processes write and read registers while the nodes are struck; their history must be one that can be."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.history import FIRST, Operation, check
from tests.chaos.register_process import KEYS
from tests.integration.live import eventually
from tests.integration.node_faults import FAULTS, Faults
from tests.integration.nodes import ask, group_of, nodes_in
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

PROCESSES = 8
ROUNDS = 6 if os.environ.get("CHAOS") == "long" else 1
QUIET_S = 15.0
"""Between two rounds: a node that dies five times a minute is given up by its supervisor."""


@pytest.fixture(scope="module")
def servers(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """Three nodes that lose no acknowledged write; registers in them."""
    with nodes_in(run_folder(), replicas=2, synchronous=True) as started:
        leader = group_of(started).leader.name
        ask(started, leader, "CREATE TABLE registers (key int PRIMARY KEY, value text NOT NULL, version int NOT NULL)")
        ask(started, leader, "INSERT INTO registers SELECT k, %s, 0 FROM generate_series(0, %s) k", FIRST, KEYS - 1)
        yield started


def test_the_history_of_eight_processes_is_one_that_an_honest_database_could_have(
    servers: BackgroundSupervisor, tmp_path: Path
) -> None:
    faults = Faults(servers, application="history")
    timeline = faults.timeline()
    clients = [_client(servers, tmp_path, number) for number in range(PROCESSES)]
    try:
        eventually(lambda: len(list(tmp_path.glob("*.token"))) == PROCESSES, within_s=180)
        for number in range(ROUNDS):
            time.sleep(QUIET_S * bool(number))
            faults.strike_all()
            _more(tmp_path)
        (tmp_path / "over").touch()
        told = [client.communicate(timeout=60) for client in clients]
    finally:
        for client in clients:
            client.kill()
    assert [client.returncode for client in clients] == [0] * PROCESSES, told
    history = _history(tmp_path)
    rows = ask(servers, group_of(servers).leader.name, "SELECT key, value, version FROM registers")
    wrong = check(history, last={key: (value, version) for key, value, version in rows})
    done = _sum(text for text, _ in told)
    kinds = Counter((one.kind, one.outcome) for one in history)
    print(f"\n{len(history)} operations: {dict(kinds)}; {dict(done)}; faults {dict(faults.done)}; {len(wrong)} wrong")
    assert wrong == []
    assert {name: faults.done[name] >= ROUNDS for name in FAULTS} == dict.fromkeys(FAULTS, True)
    assert faults.timeline() >= timeline + 2 * ROUNDS
    assert done["replica"] > done["primary"] and done["told"] > len(history) / 10
    assert min(kinds["write", "ok"], kinds["read", "ok"]) > 50 * ROUNDS


def _client(servers: BackgroundSupervisor, folder: Path, number: int) -> "subprocess.Popen[str]":
    words = [str(folder), str(number), servers.env["FLEET_DB_URL"], servers.env["FLEET_DB_REPLICAS"]]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.register_process", *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _more(folder: Path) -> None:
    """Every process has gone on since."""
    before = {page: page.stat().st_size for page in folder.glob("*.jsonl")}
    eventually(lambda: all(page.stat().st_size > size for page, size in before.items()))


def _history(folder: Path) -> list[Operation]:
    """All operations; of a write the last thing that was noted of it."""
    found: dict[object, Operation] = {}
    for page in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(page.read_text().splitlines()):
            one = Operation.from_json(line)
            found[one.value if one.kind == "write" else (page.name, number)] = one
    return list(found.values())


def _sum(lines: Iterator[str]) -> Counter[str]:
    total: Counter[str] = Counter()
    for line in lines:
        for word in line.splitlines()[-1].split():
            name, _, count = word.partition("=")
            total[name] += int(count)
    return total
