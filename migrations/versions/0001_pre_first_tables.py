"""The first tables: tasks, their steps, workers, agents, conversations, dead letters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001_pre"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them; rows that are updated often leave room on their page for the new version."""
    _tasks()
    _steps()
    _workers()
    _agents()
    _messages()
    _dead_letters()
    op.execute("ALTER TABLE tasks SET (fillfactor = 60)")
    op.execute("ALTER TABLE steps SET (fillfactor = 70)")
    op.execute("ALTER TABLE workers SET (fillfactor = 20)")


def downgrade() -> None:
    """Drop them, with all they hold."""
    for table in ("tasks", "steps", "workers", "agents", "messages", "dead_letters"):
        op.drop_table(table)


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column(
            "input", postgresql.JSON(astext_type=sa.Text()), nullable=False, comment='{"args": […], "kwargs": {…}}'
        ),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column(
            "epoch", sa.Integer(), server_default="0", nullable=False, comment="grows at every claim and takeover"
        ),
        sa.Column(
            "attempt", sa.SmallInteger(), server_default="0", nullable=False, comment="claims that were not handed back"
        ),
        sa.Column("max_attempts", sa.SmallInteger(), server_default="3", nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=True, comment="who runs it; null unless running"),
        sa.Column("output", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "report",
            postgresql.JSON(astext_type=sa.Text()),
            nullable=True,
            comment="level, tokens and other figures of the finished run",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "dispatch_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the keeper publishes it (again) if still queued",
        ),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed')", name=op.f("tasks_state_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("tasks_pkey")),
    )
    op.create_index("tasks_created_idx", "tasks", ["created_at"], unique=False)
    op.create_index(
        "tasks_key_idx",
        "tasks",
        ["tenant", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "tasks_queued_idx", "tasks", ["dispatch_at"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index(
        "tasks_running_idx", "tasks", ["worker_id"], unique=False, postgresql_where=sa.text("state = 'running'")
    )


def _steps() -> None:
    op.create_table(
        "steps",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="how many steps of this name came before, from 0"),
        sa.Column("kind", sa.Text(), nullable=False, comment="llm, tool, retrieval or step"),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="hash of name, ordinal and the request"),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="the claim that wrote the intent"),
        sa.Column(
            "executions",
            sa.SmallInteger(),
            server_default="1",
            nullable=False,
            comment="intents so far; > 1: in doubt once",
        ),
        sa.Column(
            "repeats",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="intents after it was done: always 0",
        ),
        sa.Column("state", sa.Text(), server_default="intent", nullable=False),
        sa.Column("result", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("usage", postgresql.JSON(astext_type=sa.Text()), nullable=True, comment="tokens of a model call"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('intent', 'done', 'failed')", name=op.f("steps_state_check")),
        sa.PrimaryKeyConstraint("task_id", "name", "ordinal", name=op.f("steps_pkey")),
    )


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="alive", nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('alive', 'draining', 'stopped', 'dead')", name=op.f("workers_state_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
    )


def _agents() -> None:
    op.create_table(
        "agents",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "input_schema",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="JSON Schema of the named inputs",
        ),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("agents_pkey")),
    )


def _messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("messages_pkey")),
        sa.UniqueConstraint("task_id", "ordinal", name=op.f("messages_task_id_ordinal_key")),
    )
    op.create_index("messages_session_idx", "messages", ["tenant", "session_id", "id"], unique=False)


def _dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="as received; base64 when it is not UTF-8"),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letters_pkey")),
    )
