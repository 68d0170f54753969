"""One row that says on every node how far behind the primary it is."""

import sqlalchemy as sa
from alembic import op

revision = "0003_pre"
down_revision = "0002_pre"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create it with its row, which fits on its page many times over: it is updated once a second, for ever."""
    op.create_table(
        "db_heartbeat",
        sa.Column("is_only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("is_only", name=op.f("db_heartbeat_is_only_check")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("db_heartbeat_pkey")),
    )
    op.execute("ALTER TABLE db_heartbeat SET (fillfactor = 10)")
    op.execute("INSERT INTO db_heartbeat DEFAULT VALUES")


def downgrade() -> None:
    """Drop it."""
    op.drop_table("db_heartbeat")
