"""Alembic's entry: the node of the configured ones that takes writes, the tables that `shared.db.tables` declares."""

import sys
import time
from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine, pool
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from shared.db.knobs import DbKnobs
from shared.db.pools import connect_args, first_line
from shared.db.shards_file import own_layout
from shared.db.tables import metadata
from shared.errors import FleetError
from shared.settings import load

LOCK = 0x666C656574  # "fleet": two migrations started at once run one after the other
LOOK_S = 0.5
"""Seconds between two looks whether another migration has ended."""
LOCK_S = 2.0
"""Seconds that a change of a table waits for those who use it: so long it keeps new ones waiting."""
LOCK_NOT_AVAILABLE = "55P03"
TRIES = 3
PAUSE_S = 1.0
"""Seconds between them, in which those go on who were kept waiting."""


def migrate() -> None:
    """Run the pending migrations, each in a transaction, under a lock; what cannot work ends in one sentence."""
    try:
        knobs = load().db
        first, parameters = way_in(knobs)
    except FleetError as error:
        sys.exit(f"fleet migrate: {error.message}")
    engine = create_engine(first, poolclass=pool.NullPool, connect_args=parameters)
    try:
        connection = engine.connect()
    except OperationalError as error:
        sys.exit(
            f"fleet migrate: no PostgreSQL of FLEET_DB_URL, FLEET_DB_REPLICAS or FLEET_DB_CONFIG takes writes: "
            f"{first_line(error)}; check them, or start one with `fleet up`"
        )
    with connection:
        _wait_for_others(connection)
        for tried in range(1, TRIES + 1):
            try:
                _run(connection)
                return
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                    raise
                if tried == TRIES:
                    sys.exit(
                        f"fleet migrate: a table was in use for {LOCK_S:g} s, {TRIES} times ({first_line(error)}): end"
                        " the transaction that holds it, as pg_stat_activity shows, and run this again; what was"
                        " migrated before that stays"
                    )
            connection.rollback()
            time.sleep(PAUSE_S)


def _run(connection: Connection) -> None:
    """Each migration commits with its version, so that the next try, or the next run, goes on after it."""
    context.configure(
        connection=connection, target_metadata=metadata, compare_type=True, transaction_per_migration=True
    )
    with context.begin_transaction():
        context.run_migrations()


def _wait_for_others(connection: Connection) -> None:
    """Take the lock, held until the connection ends; a wait within PostgreSQL would be waited for by an index that is
    built concurrently, for ever."""
    is_told = False
    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({LOCK})").scalar_one():
        connection.rollback()
        if not is_told:
            sys.stderr.write("fleet migrate: another migration is under way: waiting for its end\n")
            is_told = True
        time.sleep(LOOK_S)
    connection.commit()


def way_in(knobs: DbKnobs) -> tuple[str, dict[str, Any]]:
    """A node's URL, and libpq's parameters that lead from there to whichever node takes writes: after a failover that
    is another one.

    Raises: Misconfigured.
    """
    nodes = [make_url(node.direct_url or node.url) for node in own_layout(knobs).nodes]
    parameters = connect_args(knobs, application_name="fleet-migrate", is_direct=True) | {
        "target_session_attrs": "read-write"
    }
    parameters["options"] += f" -c statement_timeout=0 -c lock_timeout={round(LOCK_S * 1000)}"
    if len(nodes) > 1:
        parameters["host"] = ",".join(node.host or "" for node in nodes)
        parameters["port"] = ",".join(str(node.port or 5432) for node in nodes)
    return nodes[0].render_as_string(hide_password=False), parameters


migrate()
