"""One process of `fleet_limits`: calls a key as often as it may and writes down when. Few imports: twelve start."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from shared.errors import Throttled
from shared.resilience.fail_open import open_gate_store
from shared.resilience.gate import Gate
from shared.resilience.knobs import KeyRules, Limits, StoreKnobs

SLOTS = 2
LIMIT = 600


async def call(folder: Path, key: str, url: str) -> None:
    """One process."""
    rules = KeyRules(limits=Limits(requests_per_min=LIMIT))
    gate = Gate(open_gate_store(StoreKnobs(redis_url=url, timeout_s=5.0)), lambda _: rules)
    times: list[float] = []
    alone = 0
    (folder / f"{os.getpid()}.ready").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.01)

    async def slot() -> None:
        nonlocal alone
        while not (folder / "stop").exists():
            try:
                permit = await gate.admit(key, wait_up_to_s=5.0)
            except Throttled:
                continue
            times.append(time.monotonic())
            alone += permit.mode == "alone"
            await permit.settle("ok", seconds=0.0)

    await asyncio.gather(*(slot() for _ in range(SLOTS)))
    (folder / f"{os.getpid()}.times").write_text(json.dumps({"times": times, "alone": alone}), "utf-8")
    await gate.aclose()


if __name__ == "__main__":
    asyncio.run(call(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
