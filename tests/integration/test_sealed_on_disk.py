"""What a producer seals is in clear text neither on PostgreSQL's disk nor on RabbitMQ's."""

import asyncio
import os
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy import update

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tables import tasks
from shared.ledger.rows import accept_statement
from shared.ledger.sealed_input import seal_message
from shared.ledger.vault import NO_VAULT, OUTPUT, Vault
from shared.ledger.vault_knobs import MasterKey
from tests.integration.live import Database as Place
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

VAULT = Vault([MasterKey("k1", os.urandom(32))])


def holds(folder: Path, word: str) -> bool:
    """Whether any file below holds this word; what a server removes meanwhile does not count."""
    for place, _, names in os.walk(folder):  # Path.rglob ends with an error when a folder vanishes
        for name in names:
            path = Path(place, name)
            try:
                if path.is_file() and word.encode() in path.read_bytes():
                    return True
            except OSError:
                continue
    return False


async def test_a_sealed_task_leaves_no_word_on_any_disk(servers: BackgroundSupervisor, database: Place) -> None:
    ledger, publisher = Database(DbKnobs(url=database.url)), Publisher(BrokerKnobs(url=servers.broker_url))
    words = {}
    for vault in (VAULT, NO_VAULT):  # the control last: once it has arrived somewhere, the sealed one has too
        words[vault] = word = f"word{uuid4().hex}"
        plain = TaskMessage("chat", {"message": word})
        message = seal_message(vault, plain)
        await asyncio.wrap_future(publisher.publish(message))
        output = vault.seal({"answer": word}, task_id=message.id, role=OUTPUT)
        async with ledger.unit() as unit:
            await unit.execute(accept_statement(message, dispatch_after_s=60))
            await unit.execute(update(tasks).where(tasks.c.id == message.id).values(output=output))
    await ledger.close()
    publisher.close()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    for server in ("rabbitmq", "postgres", "replica"):
        folder = servers.around.folder(server)
        assert eventually(partial(holds, folder, words[NO_VAULT])), server
        assert not holds(folder, words[VAULT]), server
