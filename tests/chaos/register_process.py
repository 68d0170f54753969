"""One client process of the recorded history: `python -m tests.chaos.register_process FOLDER NUMBER URL REPLICAS`.

It writes and reads registers until the file `FOLDER/over` exists, gives its tokens to the other processes in files and
takes theirs, and writes down each operation before it begins and when it has ended.
"""

import asyncio
import os
import random
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from sqlalchemy import text

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import CausalToken, carrying, merged, parse
from shared.errors import CommitUnknown, DatabaseUnavailable, ReplicaStale
from tests.chaos.history import Operation

KEYS = 4
PAUSE_S = 0.004
WRITE = "UPDATE registers SET value = :value, version = version + 1 WHERE key = :key RETURNING version"
READ = "SELECT value, version, pg_is_in_recovery() FROM registers WHERE key = :key"


@dataclass(slots=True)
class Client:
    """One process: its token is what it has written, seen or been told."""

    database: Database
    folder: Path
    number: int
    page: TextIO
    rng: random.Random
    token: CausalToken | None = None
    done: dict[str, int] = field(default_factory=lambda: {"replica": 0, "primary": 0, "told": 0, "refused": 0})

    async def live(self) -> None:
        """One operation after the other."""
        count = 0
        while not (self.folder / "over").exists():
            count += 1
            self._listen()
            key = self.rng.randrange(KEYS)
            if self.rng.random() < 0.25:
                await self._write(key, f"{self.number}-{count}")
            else:
                await self._read(key)
            self._tell()
            await asyncio.sleep(PAUSE_S)

    async def _write(self, key: int, value: str) -> None:
        begun = Operation(
            self.number, "write", key, value, None, self.token, None, time.monotonic(), float("inf"), "unknown"
        )  # fmt: skip
        self._note(begun)
        version: int | None = None
        with carrying(self.token) as trail:
            try:
                async with self.database.unit() as unit:
                    version = (await unit.execute(text(WRITE), {"key": key, "value": value})).scalar_one()
            except CommitUnknown:
                return
            except DatabaseUnavailable:
                self._note(replace(begun, returned=time.monotonic(), outcome="failed"))
                return
        self._note(
            replace(begun, version=version, token=trail.token, returned=time.monotonic(), outcome="ok")
        )  # fmt: skip
        self.token = trail.token

    async def _read(self, key: int) -> None:
        called = time.monotonic()
        with carrying(self.token) as trail:
            try:
                async with self.database.unit(mode="ro", consistency="causal") as unit:
                    value, version, is_replica = (await unit.execute(text(READ), {"key": key})).one()
            except (DatabaseUnavailable, ReplicaStale):
                self.done["refused"] += 1
                return
        self.done["replica" if is_replica else "primary"] += 1
        self._note(
            Operation(
                self.number, "read", key, value, version, self.token, trail.token, called, time.monotonic(), "ok"
            )
        )  # fmt: skip
        self.token = trail.token

    def _listen(self) -> None:
        """Now and then take somebody else's token, or begin as a client that knows nothing."""
        draw = self.rng.random()
        if draw < 0.05:
            self.token = None
        elif draw < 0.35:
            other = self.rng.choice(sorted(self.folder.glob("*.token")) or [self.folder / "none"])
            told = parse(other.read_text("ascii")) if other.exists() else None
            self.done["told"] += told is not None
            self.token = merged(self.token, told)

    def _tell(self) -> None:
        if self.token is not None:
            fresh = self.folder / f"{self.number}.fresh"
            fresh.write_text(str(self.token), "ascii")
            fresh.replace(self.folder / f"{self.number}.token")

    def _note(self, one: Operation) -> None:
        self.page.write(one.to_json() + "\n")
        self.page.flush()


async def main(folder: Path, number: int, url: str, replicas: str) -> None:
    """Live, then say how it went."""
    knobs = DbKnobs(
        url=url, replicas=replicas, pool_size=2, statement_timeout_s=3.0, answer_timeout_s=0.5, look_every_s=0.1,
        return_after_s=0.3, causal_wait_s=0.5,
    )  # fmt: skip
    database = Database(knobs, application_name="history")
    with (folder / f"{number}.jsonl").open("w") as page:
        client = Client(database, folder, number, page, random.Random(os.urandom(8)))
        await client.live()
    await database.close()
    print(*(f"{name}={count}" for name, count in client.done.items()))


if __name__ == "__main__":
    _, where, process, primary, others = sys.argv
    asyncio.run(main(Path(where), int(process), primary, others))
