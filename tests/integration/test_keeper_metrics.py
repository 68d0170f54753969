"""What a keeper tells Prometheus: who leads, what it decided and did, how long it took, and what the ledger holds."""

import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.keeping import add, add_many, add_worker, ago, ask, keeper_process
from tests.integration.live import Database, eventually
from workers.ops.background import BackgroundSupervisor
from workers.ops.ports import free_port

Samples = dict[tuple[str, str], float]


def told(port: int) -> Samples:
    """Every sample by its name and the value of its first label; nothing while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            page = answer.read().decode()
    except urllib.error.URLError:
        return {}
    return {
        (one.name, next(iter(one.labels.values()), "")): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


def test_a_keeper_tells_whether_it_leads_and_what_it_does(
    database: Database, servers: BackgroundSupervisor, tmp_path: Path
) -> None:
    worker = add_worker(database, beat_ago_s=60, state="alive")
    held = add(database, state="running", worker_id=worker, attempt=1, max_attempts=3, agent="held")
    for name, state in (("cut", "intent"), ("over", "done")):
        values = "task_id, name, ordinal, kind, fingerprint, epoch, state, result, finished_at"
        ask(
            database,
            f"INSERT INTO steps ({values}) VALUES (%s, %s, 0, 'llm', 'x', 1, %s, 'null', now())",
            held, name, state,
        )  # fmt: skip
    add(database, state="running", worker_id=worker, attempt=3, max_attempts=3)
    add_many(database, 3, state="waiting", wake_at=ago(1))
    add_many(database, 2, state="waiting", wake_at=ago(-600))
    add_many(database, 4, state="succeeded", finished_at=ago(90 * 86_400), created_at=ago(90 * 86_400))
    ports = [one := free_port(taken=set()), free_port(taken={one})]
    env = {**servers.env, "FLEET_DB_URL": database.url, "FLEET_KEEPER_BACKLOG_S": "0.2", "FLEET_KEEPER_ROUND_S": "0.2"}

    with ExitStack() as stack:
        first, second = [
            stack.enter_context(
                keeper_process({**env, "FLEET_KEEPER_METRICS_PORT": str(port)}, log=tmp_path / str(uuid4()))
            )
            for port in ports
        ]
        pages = eventually(
            lambda: (p := [told(port) for port in ports]) and all(p) and _one_leads(p) and p, within_s=120
        )
        leader, standby = sorted(pages, key=lambda page: -page["fleet_keeper_leading", ""])
        assert (leader["fleet_keeper_epoch", ""], standby["fleet_keeper_epoch", ""]) == (1, 0)
        port = ports[pages.index(leader)]

        def is_done() -> bool:
            """The last that a burial tells is there; the page that says so may have been begun before the first."""
            page = told(port)
            ends = {("fleet_keeper_tasks_total", one) for one in ("retired", "cancelled")}
            return {*ends, ("fleet_backlog_tasks", "waiting")} <= page.keys()

        eventually(is_done)
        page = told(port)
        tasks = {label: value for (name, label), value in page.items() if name == "fleet_keeper_tasks_total"}
        assert tasks | {"redispatched": 0} == {
            "rescued": 1, "dead_lettered": 1, "cancelled": 0, "woken": 3, "retired": 4, "redispatched": 0
        }  # fmt: skip
        assert page["fleet_keeper_decisions_total", "bury"] == 1
        assert page["fleet_keeper_steps_in_doubt_total", ""] == 1
        assert page["fleet_keeper_chore_seconds_count", "timers"] >= 1
        assert page["fleet_backlog_tasks", "waiting"] == 2
        assert ("fleet_worker_fenced_total", "") not in page, "a worker's"
        assert ("fleet_backlog_tasks", "waiting") not in told(ports[1 - ports.index(port)]), "the leader's to tell"

        (first if port == ports[0] else second).kill()
        other = ports[1 - ports.index(port)]
        heir = eventually(lambda: (page := told(other)).get(("fleet_keeper_leading", "")) == 1 and page, within_s=60)
        assert heir["fleet_keeper_epoch", ""] == 2


def _one_leads(pages: list[Samples]) -> bool:
    return sum(page["fleet_keeper_leading", ""] for page in pages) == 1
