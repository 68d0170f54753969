"""The keeper among workers: how late a wait goes on, limits under real workers, and a keeper that is killed."""

import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from shared.contracts import tick_task_id
from tests.integration.fleets import STEADY, StartFleet
from tests.integration.keeping import keeper_process
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

NAPS = 20
LONG_S = 600.0
"""Longer than any machine takes to put all of them to sleep."""
COMES_SOON = """
    WITH now_due AS (UPDATE steps SET until = now() + interval '1 s' WHERE kind = 'sleep' AND task_id = ANY(%s))
    UPDATE tasks SET wake_at = now() + interval '1 s' WHERE id = ANY(%s)"""
"""Lets the time of sleeping runs come in a second."""
STANDING = """
    SELECT count(DISTINCT application_name) FROM pg_stat_activity
    WHERE datname = current_database() AND starts_with(application_name, 'fleet-keeper-')"""

AT_ONCE = """
    SELECT max(running) FROM (SELECT count(*) AS running FROM tasks one JOIN tasks other USING (tenant)
    WHERE one.id = ANY(%s) AND other.started_at <= one.started_at AND other.finished_at > one.started_at
    GROUP BY one.id) beginnings"""


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(2, more={**STEADY, "FLEET_LEDGER_SUSPEND_AFTER_S": "0.5"}) as started:
        yield started


def ask(fleet: BackgroundSupervisor, statement: str, *values: object) -> list[tuple[object, ...]]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def lags(fleet: BackgroundSupervisor, ids: list[UUID], seconds: float) -> list[float]:
    """Seconds from the end of each run's sleep until its next step began."""
    rows = ask(
        fleet,
        "SELECT extract(epoch FROM a.started_at - s.started_at)::float8 FROM steps s JOIN steps a USING (task_id)"
        " WHERE s.kind = 'sleep' AND a.name = 'after' AND task_id = ANY(%s)",
        ids,
    )
    return sorted(float(str(took_s)) - seconds for (took_s,) in rows)


def naps(client: FleetClient, diary: Path, seconds: float) -> list[UUID]:
    return [client.submit("test.nap", {"seconds": seconds, "diary": f"{diary}{n}"}).id for n in range(NAPS)]


def test_a_run_that_sleeps_goes_on_soon_after_its_time(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    ids = naps(client, diary, 1.5)
    for task_id in ids:
        assert client.result(task_id, 30) == [1, 2]
    late = lags(fleet, ids, 1.5)
    assert len(late) == NAPS
    print(f"\nwake lag: p50 {statistics.median(late):.3f} s, max {late[-1]:.3f} s")
    assert late[0] >= 0


def test_runs_sleep_through_the_death_of_the_keeper(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path, tmp_path: Path
) -> None:
    env = {name: value for name, value in fleet.env.items() if name.startswith("FLEET_")}
    with keeper_process({**env, **STEADY}, log=tmp_path / "keeper") as _standby:
        eventually(lambda: ask(fleet, STANDING)[0][0] == 2)
        ids = naps(client, diary, LONG_S)
        eventually(lambda: ask(fleet, "SELECT count(*) FROM tasks WHERE state = 'waiting'")[0][0] == NAPS)
        fleet.suspend("keeper")
        fleet.kill("keeper", signal.SIGKILL)
        ask(fleet, COMES_SOON, ids, ids)
        for task_id in ids:
            assert client.result(task_id, 30) == [1, 2]
        fleet.resume("keeper")
        eventually(lambda: fleet.status("keeper") == "ready")


def test_real_workers_never_run_more_than_the_limit(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    ask(fleet, "INSERT INTO limits VALUES ('tenant', 'small', 3)")
    began = time.monotonic()
    ids = [client.submit("test.sleep", {"seconds": 1.0}, tenant="small").id for _ in range(12)]
    free = client.submit("test.echo", {"text": "another tenant"})
    most = 0
    while ask(fleet, "SELECT count(*) FROM tasks WHERE id = ANY(%s) AND state = 'succeeded'", ids)[0][0] != len(ids):
        running = ask(fleet, "SELECT count(*) FROM tasks WHERE tenant = 'small' AND state = 'running'")[0][0]
        most = max(most, int(str(running)))
        assert time.monotonic() - began < 120, "only ends a broken test"
    print(f"\n12 tasks of 1 s, 3 at once: {time.monotonic() - began:.2f} s (ideal 4 s)")
    assert most <= 3
    assert ask(fleet, AT_ONCE, ids) == [(3,)], "what the limit allows is used"
    assert free.result(30)["said"] == ["another tenant"]
    ask(fleet, "DELETE FROM limits")


def test_a_schedule_ticks_once_for_each_of_its_times(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    ask(
        fleet,
        "INSERT INTO schedules (name, agent, input, tenant, cron, next_at) VALUES ('each', 'test.echo', %s, 'cron',"
        " '* * * * * *', date_trunc('second', now()) + interval '1 s')",
        '{"args": [], "kwargs": {"text": "tick"}}',
    )
    eventually(lambda: int(str(ask(fleet, "SELECT count(*) FROM tasks WHERE tenant = 'cron'")[0][0])) >= 5)
    ask(fleet, "UPDATE schedules SET is_paused = true")
    (name, last_at, last_id), *_ = ask(fleet, "SELECT name, last_at, last_task_id FROM schedules")
    assert last_id == tick_task_id(str(name), last_at)  # type: ignore[arg-type]
    eventually(lambda: not ask(fleet, "SELECT 1 FROM tasks WHERE tenant = 'cron' AND state <> 'succeeded'"))
    ((count, seconds, lag_s),) = ask(
        fleet,
        "SELECT count(*), count(DISTINCT date_trunc('second', created_at)),"
        " max(extract(epoch FROM started_at - date_trunc('second', created_at)))::float8"
        " FROM tasks WHERE tenant = 'cron'",
    )
    print(f"\n{count} ticks; a task started at most {lag_s:.2f} s after its second")
    assert count == seconds, "none twice"
