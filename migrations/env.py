"""Alembic's entry: the node of the configured ones that takes writes, the tables that `shared.db.tables` declares."""

import sys
from typing import Any

from alembic import context
from sqlalchemy import create_engine, pool
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from shared.db.knobs import DbKnobs
from shared.db.pools import connect_args, first_line
from shared.db.shards_file import own_layout
from shared.db.tables import metadata
from shared.errors import FleetError
from shared.settings import load

LOCK = 0x666C656574  # "fleet": two migrations started at once run one after the other


def migrate() -> None:
    """Run the pending migrations in one transaction, under a lock; what cannot work ends in one sentence."""
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
        context.configure(connection=connection, target_metadata=metadata, compare_type=True)
        with context.begin_transaction():
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            context.run_migrations()


def way_in(knobs: DbKnobs) -> tuple[str, dict[str, Any]]:
    """A node's URL, and libpq's parameters that lead from there to whichever node takes writes: after a failover that
    is another one.

    Raises: Misconfigured.
    """
    nodes = [make_url(node.direct_url or node.url) for node in own_layout(knobs).nodes]
    parameters = connect_args(knobs, application_name="fleet-migrate", is_direct=True) | {
        "target_session_attrs": "read-write"
    }
    if len(nodes) > 1:
        parameters["host"] = ",".join(node.host or "" for node in nodes)
        parameters["port"] = ",".join(str(node.port or 5432) for node in nodes)
    return nodes[0].render_as_string(hide_password=False), parameters


migrate()
