"""Waiting, cancelling, children, priorities, held tasks, large results, schedules, limits, leaders."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_pre"
down_revision = "0001_pre"
branch_labels = None
depends_on = None

ACTIVE = "state IN ('queued', 'running', 'waiting', 'parked')"


def upgrade() -> None:
    """Widen: every old row stays valid."""
    _limits_and_schedules()
    _signals_and_terms()
    _columns()
    _task_columns()
    _check("tasks", "state", "'queued', 'running', 'waiting', 'parked', 'succeeded', 'failed', 'cancelled'")
    _check("steps", "state", "'intent', 'waiting', 'done', 'failed'")
    op.create_check_constraint(op.f("tasks_priority_check"), "tasks", "priority IN ('interactive', 'normal', 'batch')")
    op.execute("UPDATE tasks SET published_at = created_at WHERE state = 'queued'")
    _indexes()


def downgrade() -> None:
    """Back to the first tables; PostgreSQL refuses while a task is in a state that they do not know."""
    _narrow_tasks()
    _check("tasks", "state", "'queued', 'running', 'succeeded', 'failed'")
    _check("steps", "state", "'intent', 'done', 'failed'")
    op.drop_table("terms")
    op.drop_index("signals_task_idx", table_name="signals")
    op.drop_table("signals")
    op.drop_index("schedules_next_idx", table_name="schedules", postgresql_where=sa.text("NOT is_paused"))
    op.drop_table("schedules")
    op.drop_table("limits")
    op.drop_table("blobs")


def _check(table: str, column: str, allowed: str) -> None:
    name = op.f(f"{table}_{column}_check")
    op.drop_constraint(name, table, type_="check")
    op.create_check_constraint(name, table, f"{column} IN ({allowed})")


def _limits_and_schedules() -> None:
    op.create_table(
        "blobs",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("data", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "name", "ordinal", name=op.f("blobs_pkey")),
    )
    op.create_table(
        "limits",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=False),
        sa.CheckConstraint("scope IN ('tenant', 'agent')", name=op.f("limits_scope_check")),
        sa.CheckConstraint("max_running >= 0", name=op.f("limits_max_running_check")),
        sa.PrimaryKeyConstraint("scope", "name", name=op.f("limits_pkey")),
    )
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("input", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("priority", sa.Text(), server_default="normal", nullable=False),
        sa.Column("max_attempts", sa.SmallInteger(), server_default="3", nullable=False),
        sa.Column("deadline_s", sa.Float(), nullable=True, comment="seconds from the tick"),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), server_default="UTC", nullable=False),
        sa.Column("is_paused", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_task_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("schedules_pkey")),
    )
    op.create_index(
        "schedules_next_idx", "schedules", ["next_at"], unique=False, postgresql_where=sa.text("NOT is_paused")
    )


def _signals_and_terms() -> None:
    op.create_table(
        "signals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("signals_pkey")),
    )
    op.create_index("signals_task_idx", "signals", ["task_id", "name", "id"], unique=False)
    op.create_table(
        "terms",
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column(
            "epoch", sa.BigInteger(), nullable=False, comment="grows with every leader; a stale one writes nothing"
        ),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column(
            "backend_pid", sa.Integer(), nullable=False, comment="the server process that holds the advisory lock"
        ),
        sa.Column("renewed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("role", name=op.f("terms_pkey")),
    )


def _columns() -> None:
    op.add_column(
        "agents",
        sa.Column(
            "max_running", sa.Integer(), nullable=True, comment="as its author declared it; `limits` is what counts"
        ),
    )
    op.add_column(
        "steps",
        sa.Column(
            "in_doubt", sa.SmallInteger(), server_default="0", nullable=False, comment="intents that nobody saw end"
        ),
    )
    op.add_column(
        "steps",
        sa.Column("in_blob", sa.Boolean(), server_default="false", nullable=False, comment="the result is in `blobs`"),
    )
    op.add_column(
        "steps",
        sa.Column("until", sa.DateTime(timezone=True), nullable=True, comment="waiting: when it is over at the latest"),
    )
    op.alter_column(
        "steps",
        "executions",
        existing_type=sa.SMALLINT(),
        comment="intents so far, retries included",
        existing_comment="intents so far; > 1: in doubt once",
        existing_nullable=False,
        existing_server_default=sa.text("'1'::smallint"),
    )
    op.alter_column(
        "tasks",
        "dispatch_at",
        existing_type=postgresql.TIMESTAMP(timezone=True),
        comment="held: its place in line; published: when to again",
        existing_comment="when the keeper publishes it (again) if still queued",
        existing_nullable=True,
    )


def _task_columns() -> None:
    op.add_column("tasks", sa.Column("priority", sa.Text(), server_default="normal", nullable=False))
    op.add_column("tasks", sa.Column("parent_id", sa.Uuid(), nullable=True, comment="the task that spawned it"))
    op.add_column(
        "tasks",
        sa.Column(
            "root_agent",
            sa.Text(),
            nullable=True,
            comment="the agent whose max_running it counts against; null: its own",
        ),
    )
    op.add_column("tasks", sa.Column("forked_from", sa.Uuid(), nullable=True))
    op.add_column(
        "tasks",
        sa.Column(
            "wake_at", sa.DateTime(timezone=True), nullable=True, comment="when a waiting task goes on at the latest"
        ),
    )
    op.add_column(
        "tasks",
        sa.Column(
            "waiting_for",
            postgresql.JSON(astext_type=sa.Text()),
            nullable=True,
            comment='{"kind": "start|sleep|retry|signal|children", …}',
        ),
    )
    op.add_column(
        "tasks",
        sa.Column(
            "wakes", sa.Integer(), server_default="0", nullable=False, comment="signals and ends of children so far"
        ),
    )
    op.add_column("tasks", sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "tasks",
        sa.Column(
            "published_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="since when a message stands for it; null: held",
        ),
    )
    op.add_column(
        "tasks",
        sa.Column(
            "discarded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="an operator took it off the list of the failed",
        ),
    )


def _indexes() -> None:
    op.drop_index(op.f("tasks_queued_idx"), table_name="tasks", postgresql_where="(state = 'queued'::text)")
    op.create_index(
        "tasks_deadline_idx",
        "tasks",
        ["deadline_at"],
        unique=False,
        postgresql_where=sa.text(f"deadline_at IS NOT NULL AND {ACTIVE}"),
    )
    op.create_index(
        "tasks_failed_idx",
        "tasks",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("state = 'failed' AND discarded_at IS NULL"),
    )
    op.create_index(
        "tasks_held_idx",
        "tasks",
        ["priority", "tenant", "dispatch_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND published_at IS NULL"),
    )
    op.create_index("tasks_parked_idx", "tasks", ["agent"], unique=False, postgresql_where=sa.text("state = 'parked'"))
    op.create_index(
        "tasks_parent_idx", "tasks", ["parent_id"], unique=False, postgresql_where=sa.text("parent_id IS NOT NULL")
    )
    op.create_index(
        "tasks_published_idx",
        "tasks",
        ["tenant", "published_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND published_at IS NOT NULL"),
    )
    op.create_index(
        "tasks_waiting_idx", "tasks", ["wake_at"], unique=False, postgresql_where=sa.text("state = 'waiting'")
    )


def _narrow_tasks() -> None:
    op.drop_constraint(op.f("tasks_priority_check"), "tasks", type_="check")
    op.drop_index("tasks_waiting_idx", table_name="tasks", postgresql_where=sa.text("state = 'waiting'"))
    op.drop_index(
        "tasks_published_idx",
        table_name="tasks",
        postgresql_where=sa.text("state = 'queued' AND published_at IS NOT NULL"),
    )
    op.drop_index("tasks_parent_idx", table_name="tasks", postgresql_where=sa.text("parent_id IS NOT NULL"))
    op.drop_index("tasks_parked_idx", table_name="tasks", postgresql_where=sa.text("state = 'parked'"))
    op.drop_index(
        "tasks_held_idx", table_name="tasks", postgresql_where=sa.text("state = 'queued' AND published_at IS NULL")
    )
    op.drop_index(
        "tasks_failed_idx", table_name="tasks", postgresql_where=sa.text("state = 'failed' AND discarded_at IS NULL")
    )
    op.drop_index(
        "tasks_deadline_idx", table_name="tasks", postgresql_where=sa.text(f"deadline_at IS NOT NULL AND {ACTIVE}")
    )
    op.create_index(
        op.f("tasks_queued_idx"), "tasks", ["dispatch_at"], unique=False, postgresql_where="(state = 'queued'::text)"
    )
    op.alter_column(
        "tasks",
        "dispatch_at",
        existing_type=postgresql.TIMESTAMP(timezone=True),
        comment="when the keeper publishes it (again) if still queued",
        existing_comment="held: its place in line; published: when to again",
        existing_nullable=True,
    )
    op.drop_column("tasks", "discarded_at")
    op.drop_column("tasks", "published_at")
    op.drop_column("tasks", "cancel_requested_at")
    op.drop_column("tasks", "wakes")
    op.drop_column("tasks", "waiting_for")
    op.drop_column("tasks", "wake_at")
    op.drop_column("tasks", "forked_from")
    op.drop_column("tasks", "root_agent")
    op.drop_column("tasks", "parent_id")
    op.drop_column("tasks", "priority")
    op.alter_column(
        "steps",
        "executions",
        existing_type=sa.SMALLINT(),
        comment="intents so far; > 1: in doubt once",
        existing_comment="intents so far, retries included",
        existing_nullable=False,
        existing_server_default=sa.text("'1'::smallint"),
    )
    op.drop_column("steps", "until")
    op.drop_column("steps", "in_blob")
    op.drop_column("steps", "in_doubt")
    op.drop_column("agents", "max_running")
