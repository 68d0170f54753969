"""Alembic's entry: the database that FLEET_DB_URL names, the tables that `shared.db.tables` declares."""

from alembic import context
from sqlalchemy import create_engine, pool

from shared.db.database import connect_args
from shared.db.tables import metadata
from shared.settings import load

LOCK = 0x666C656574  # "fleet": two migrations started at once run one after the other


def migrate() -> None:
    """Run the pending migrations in one transaction, under a lock."""
    knobs = load().db
    engine = create_engine(
        knobs.url, poolclass=pool.NullPool, connect_args=connect_args(knobs, application_name="fleet-migrate")
    )
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, compare_type=True)
        with context.begin_transaction():
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            context.run_migrations()


migrate()
