"""`route.decision`: what it takes to choose the node of a causal read, among a primary and two replicas.

The router's whole decision, as each unit of work asks for it, with a token that both replicas are known to have
reached. No peer: a plain engine has no choice.
"""

import time
from statistics import median

from sqlalchemy import text

from shared.db.database import Database
from shared.db.decide import Wish
from shared.db.knobs import DbKnobs
from shared.db.tokens import carrying, current
from tests.bench.figures import Figure
from tests.bench.own_nodes import own_nodes
from tests.bench.site import BenchFailed, Site, say
from tests.integration.nodes import ask, group_of
from workers.ops.background import BackgroundSupervisor

BATCHES = 2000
CALLS = 50
"""Short, so that few batches are cut by whoever else wants the processor: the median is of those that were not."""
GOAL_US = 5.0
WISHES = {"causal": Wish("ro", "causal"), "eventual": Wish("ro", "eventual"), "write": Wish()}


def measure(site: Site) -> list[Figure]:
    """By batches, in turns; the median batch."""
    with own_nodes() as servers:
        ask(servers, group_of(servers).leader.name, "CREATE TABLE kept (key int PRIMARY KEY, value int NOT NULL)")
        spent = site.run(_decisions(servers))
    say(f"  {', '.join(f'{asked} {microseconds:.1f} µs' for asked, microseconds in spent.items())}")
    return [
        Figure(
            name="route.decision", what="node of a causal read chosen among three", value=spent["causal"], unit="µs",
            goal=GOAL_US, better="lower",
        )
    ]  # fmt: skip


async def _decisions(servers: BackgroundSupervisor) -> dict[str, float]:
    database = Database(DbKnobs(url=servers.env["FLEET_DB_URL"], replicas=servers.env["FLEET_DB_REPLICAS"]))
    try:
        with carrying(None):
            async with database.unit() as unit:
                await unit.execute(text("INSERT INTO kept VALUES (1, 1)"))
            return await _measured(database)
    finally:
        await database.close()


async def _measured(database: Database) -> dict[str, float]:
    router, token = database.router, current()
    if router is None:
        raise BenchFailed("the nodes were not told to the database")
    for _ in range(10):  # until every replica has been seen at the token
        await router.look_again()
    if router.explain(WISHES["causal"], token).verdict != "go":
        raise BenchFailed(f"no replica: {router.explain(WISHES['causal'], token).reason}")
    samples: dict[str, list[float]] = {asked: [] for asked in WISHES}
    for _ in range(BATCHES):
        for asked, wish in WISHES.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                router.explain(wish, token)
            samples[asked].append((time.perf_counter() - began) / CALLS * 1e6)
    return {asked: median(found) for asked, found in samples.items()}
