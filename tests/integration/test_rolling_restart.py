"""All workers are restarted one after another under load: nothing is lost, nothing repeated, no attempt spent."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from tests.integration.fleets import HANDED_BACK_ONLY, LATER_S, StartFleet
from tests.integration.live import eventually
from tests.integration.worker_of import own_worker
from workers.ops.background import BackgroundSupervisor

WORKERS = 3
STEPS = 5
STEP_S = 0.4
DRAIN_S = 0.5
CUT_S = 20
"""A step is over long before it would be cut off, on a busy machine too."""
GAPS = """
    SELECT max(extract(epoch FROM began - ended))::float8, count(*) FROM (
        SELECT task_id, started_at AS began, lag(finished_at) OVER (PARTITION BY task_id ORDER BY ordinal) AS ended
        FROM steps WHERE task_id = ANY(%s)) s
    JOIN tasks t ON t.id = s.task_id WHERE t.epoch > 1 AND ended IS NOT NULL"""


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    more = {
        "FLEET_AGENTS": "tests.integration.diary_agents", "FLEET_WORKER_DRAIN_S": str(DRAIN_S),
        "FLEET_WORKER_CUT_S": str(CUT_S), **HANDED_BACK_ONLY,
    }  # fmt: skip
    with start_fleet(WORKERS, more=more) as started:
        yield started


def test_a_rolling_restart_of_all_workers_under_load(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    ended = threading.Event()
    ids: list[UUID] = []

    def load() -> None:
        while not ended.wait(0.05):
            inputs = {"diary": str(diary), "number": len(ids), "count": STEPS, "step_s": STEP_S}
            ids.append(client.submit("diary.steps", inputs).id)

    loading = threading.Thread(target=load)
    loading.start()
    try:
        eventually(lambda: len(ids) > 40)
        for number in range(1, WORKERS + 1):
            fleet.restart(f"worker-{number}")
    finally:
        ended.set()
        loading.join()
    assert [client.result(task_id, 60) for task_id in ids] == list(range(len(ids)))

    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT attempt, epoch FROM tasks WHERE id = ANY(%s)", (ids,)).fetchall()
        [(gap_s, resumed)] = connection.execute(GAPS, (ids,)).fetchall()
        executions = connection.execute(
            "SELECT sum(executions), sum(repeats), sum(in_doubt) FROM steps WHERE task_id = ANY(%s)", (ids,)
        ).fetchall()[0]
    handed_back = sum(epoch > 1 for _, epoch in rows)
    print(f"{len(ids)} tasks, {handed_back} handed back, longest gap between two of their steps {gap_s:.2f} s")
    assert {attempt for attempt, _ in rows} == {1}
    assert executions == (len(ids) * STEPS, 0, 0)
    lines = Counter(diary.read_text().split())
    assert lines == {f"{number}.{step}": 1 for number in range(len(ids)) for step in range(STEPS)}
    assert handed_back > 0, "the drain deadline must have cut runs off at their steps"
    assert resumed > 0
    assert gap_s < LATER_S, "handed back, not found later"


def test_a_worker_told_to_stop_is_not_ready_at_once_and_takes_nothing_new(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    with own_worker(fleet, 9, FLEET_WORKER_DRAIN_S="12") as worker:
        eventually(lambda: worker.ask("/readyz")[0] == 200)
        assert worker.ask("/livez")[0] == 200
        long = [client.submit("diary.start", {"diary": str(diary), "number": n, "seconds": 8}).id for n in range(40)]
        eventually(lambda: running_on(fleet, worker.name, long) > 0)
        fleet.suspend(worker.name)
        fleet.kill(worker.name, signal.SIGTERM, whole=False)
        eventually(lambda: worker.ask("/readyz")[0] == 503)
        assert worker.ask("/livez")[0] == 200
        had = running_on(fleet, worker.name, long)
        more = [client.submit("diary.start", {"diary": str(diary), "number": n, "seconds": 0.5}).id for n in range(60)]
        taken = []

        def are_over() -> bool:
            taken.append(running_on(fleet, worker.name, more))
            return {client.status(task_id).state for task_id in more} == {"succeeded"}

        eventually(are_over, within_s=60)
        assert max(taken) == 0
        assert had > 0, "it is not ready at once, while its runs go on"
        for task_id in long:
            client.result(task_id, 30)
        assert {client.status(task_id).epoch for task_id in long} == {1}


def running_on(fleet: BackgroundSupervisor, worker: str, ids: list[UUID]) -> int:
    """How many of these tasks the worker holds."""
    query = "SELECT count(*) FROM tasks t JOIN workers w ON w.id = t.worker_id WHERE t.id = ANY(%s) AND w.name LIKE %s"
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        return int(connection.execute(query, (ids, f"{worker}@%")).fetchall()[0][0])
