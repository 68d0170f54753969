"""What is written in batches, and polled, is found by its key, however large the table and however little is known."""

import re
from collections.abc import Mapping
from uuid import UUID

import pytest

from shared.ledger.poll import HELD, LOST
from shared.ledger.statements import BY_KEY, KINDS, Kind, batch_statement
from tests.integration.by_hand import ByHand

FINISHED = """
    INSERT INTO tasks (id, tenant, agent, input, state)
    SELECT gen_random_uuid(), 'acme', 'a', '{}', 'succeeded' FROM generate_series(1, 3000)"""


async def plan(worker: ByHand, statement: str, values: Mapping[str, object], *, setting: str = "") -> str:
    """How PostgreSQL goes about it on a table of many tasks of which it knows nothing yet."""
    connection = await worker.database.direct()
    try:
        await connection.execute(FINISHED)
        await connection.execute(setting)
        rows = await (await connection.execute(f"EXPLAIN {statement}", values)).fetchall()
    finally:
        await connection.close()
    return "\n".join(line for (line,) in rows)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_finds_its_rows_by_their_keys(worker: ByHand, kind: Kind) -> None:
    values = {kind: "[]", "worker": worker.id, "fair_window": 256, "again": False}
    told = await plan(worker, batch_statement((kind,), fenced=True), values, setting=BY_KEY)
    assert not re.search(r"Seq Scan on (tasks|steps|blobs)", told), told
    assert "Hash Join" not in told and "Merge Join" not in told, told


@pytest.mark.parametrize("statement", [HELD, LOST], ids=["held", "lost"])
async def test_a_poll_finds_what_it_claims_by_its_key(worker: ByHand, statement: str) -> None:
    values = {"worker": UUID(int=1), "agents": ["a"], "priority": "normal", "slots": 128, "turn": "", "lost_after_s": 3}
    told = await plan(worker, re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement), values)
    assert "Seq Scan on tasks t" not in told, told
