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
    """Small ones: the keeper looks every few seconds, and most of what waits waits for something else.

    Built while the fleet works on, however large the table; what an interrupted build has left is dropped first.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")  # it keeps nobody waiting, and waits for old transactions
        for name, column, where in (("tasks_awaiting_idx", "id", AWAITING), ("tasks_kin_idx", "parent_id", ACTIVE)):
            op.drop_index(name, "tasks", if_exists=True, postgresql_concurrently=True)
            op.create_index(name, "tasks", [column], postgresql_where=sa.text(where), postgresql_concurrently=True)
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    """Drop them."""
    op.drop_index("tasks_kin_idx", "tasks")
    op.drop_index("tasks_awaiting_idx", "tasks")
