"""How many reads each process has lately sent to each node, for `fleet db status`."""

import sqlalchemy as sa
from alembic import op

revision = "0005_pre"
down_revision = "0004_pre"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create it; it is not logged: it need not survive the server it is on."""
    op.create_table(
        "db_reads",
        sa.Column("process", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("reads", sa.BigInteger(), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("process", "node", name=op.f("db_reads_pkey")),
        prefixes=["UNLOGGED"],
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("db_reads")
