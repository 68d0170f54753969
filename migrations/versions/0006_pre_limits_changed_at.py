"""When a limit was set or changed: what ran before may exceed it, what is released since may not."""

import sqlalchemy as sa
from alembic import op

revision = "0006_pre"
down_revision = "0005_pre"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; limits that are there count as set now."""
    column = sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
    op.add_column("limits", column)


def downgrade() -> None:
    """Drop it."""
    op.drop_column("limits", "changed_at")
