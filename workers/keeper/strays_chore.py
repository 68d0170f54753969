"""Tasks that were handed in on a shard that has not their bucket are taken home: a chore where there are several."""

import structlog

from shared.db.shards import Shards
from shared.ledger.strays import take_home
from shared.telemetry.keeper_metrics import TASKS
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.rounds import Chore

log = structlog.get_logger()


def strays_chore(shards: Shards, own: str, *, knobs: KeeperKnobs) -> Chore:
    """Look for them at their interval, and at once again while there are more."""

    async def take() -> float | None:
        taken = await take_home(shards, own, limit=knobs.batch)
        if taken:
            TASKS.labels("taken_home").inc(taken)
            log.info("keeper.taken_home", tasks=taken, reason="their bucket is on another shard")
        return 0.0 if taken == knobs.batch else None

    return Chore("strays", take, knobs.strays_s)
