"""Indexes of families: parents that wait for children, and children that have not ended."""

import sqlalchemy as sa
from alembic import op

revision = "0007_pre"
down_revision = "0006_pre"
branch_labels = None
depends_on = None

AWAITING = "state = 'waiting' AND (waiting_for -> 'ids') IS NOT NULL"
ACTIVE = "parent_id IS NOT NULL AND state IN ('queued', 'running', 'waiting', 'parked')"


def upgrade() -> None:
    """Small ones: the keeper looks every few seconds, and most of what waits waits for something else."""
    op.create_index("tasks_awaiting_idx", "tasks", ["id"], postgresql_where=sa.text(AWAITING))
    op.create_index("tasks_kin_idx", "tasks", ["parent_id"], postgresql_where=sa.text(ACTIVE))


def downgrade() -> None:
    """Drop them."""
    op.drop_index("tasks_kin_idx", "tasks")
    op.drop_index("tasks_awaiting_idx", "tasks")
