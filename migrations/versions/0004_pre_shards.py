"""Buckets that may live on another shard: which are here, and triggers that hold back what is written elsewhere.

The triggers are disabled until the first bucket is moved: with one shard they cost nothing. An idempotency key needs no
index any more: it is in the task's id.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004_pre"
down_revision = "0003_pre"
branch_labels = None
depends_on = None

BUCKET_OF_TASK = """
    CREATE FUNCTION fleet_task_bucket(id uuid) RETURNS int LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
        SELECT get_byte(uuid_send(id), 15) | ((get_byte(uuid_send(id), 14) & 3) << 8)
    $$"""
BUCKET_OF_SESSION = r"""
    CREATE FUNCTION fleet_session_bucket(tenant text, session text) RETURNS int
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
        SELECT get_byte(digest, 0) | ((get_byte(digest, 1) & 3) << 8)
        FROM (SELECT sha256(convert_to(tenant, 'UTF8') || '\x00'::bytea || convert_to(session, 'UTF8')) AS digest) s
    $$"""
PLACE_TASK = """
    CREATE FUNCTION fleet_place_task() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE is_here text;
    BEGIN
        SELECT state INTO is_here FROM shard_buckets WHERE bucket = fleet_task_bucket(NEW.id) FOR KEY SHARE;
        IF is_here IS NULL OR is_here = 'open' OR current_setting('fleet.mover', true) = 'on' THEN
            RETURN NEW;
        END IF;
        IF TG_OP = 'UPDATE' THEN  -- somebody claims it: not now, or not here
            RETURN NULL;
        END IF;
        IF NEW.state = 'running' THEN  -- a claim of a task that only its message knew
            NEW.state := 'queued';
            NEW.worker_id := NULL;
            NEW.started_at := NULL;
            NEW.published_at := NULL;
            NEW.epoch := 0;
            NEW.attempt := 0;
        END IF;
        IF is_here <> 'moving' THEN
            INSERT INTO shard_strays (task_id) VALUES (NEW.id) ON CONFLICT DO NOTHING;
        END IF;
        RETURN NEW;
    END $$"""
PLACE_MESSAGE = """
    CREATE FUNCTION fleet_place_message() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE is_here text;
    BEGIN
        SELECT state INTO is_here FROM shard_buckets
        WHERE bucket = fleet_session_bucket(NEW.tenant, NEW.session_id) FOR KEY SHARE;
        IF is_here IN ('moved', 'arriving') AND coalesce(current_setting('fleet.mover', true), '') <> 'on' THEN
            RAISE EXCEPTION 'the session % is on another shard', NEW.session_id USING ERRCODE = 'FS001';
        END IF;
        RETURN NEW;
    END $$"""
TRIGGERS = (
    "CREATE TRIGGER shard_place BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION fleet_place_task()",
    "CREATE TRIGGER shard_claim BEFORE UPDATE OF state ON tasks FOR EACH ROW"
    " WHEN (NEW.state = 'running' AND OLD.state <> 'running') EXECUTE FUNCTION fleet_place_task()",
    "CREATE TRIGGER shard_place BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION fleet_place_message()",
    "ALTER TABLE tasks DISABLE TRIGGER shard_place",
    "ALTER TABLE tasks DISABLE TRIGGER shard_claim",
    "ALTER TABLE messages DISABLE TRIGGER shard_place",
)


def upgrade() -> None:
    """Create what a second shard needs."""
    op.create_table(
        "shard_buckets",
        sa.Column("bucket", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False, comment="grows with every move"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("shard", sa.Text(), nullable=False, comment="where it is, as far as this shard knows"),
        sa.CheckConstraint("bucket BETWEEN 0 AND 1023", name=op.f("shard_buckets_bucket_check")),
        sa.CheckConstraint(
            "state IN ('open', 'moving', 'moved', 'arriving')", name=op.f("shard_buckets_state_check")
        ),
        sa.PrimaryKeyConstraint("bucket", name=op.f("shard_buckets_pkey")),
    )  # fmt: skip
    op.create_table(
        "shard_strays",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name=op.f("shard_strays_pkey")),
    )
    for statement in (BUCKET_OF_TASK, BUCKET_OF_SESSION, PLACE_TASK, PLACE_MESSAGE, *TRIGGERS):
        op.execute(statement)
    op.drop_index("tasks_key_idx", table_name="tasks")


def downgrade() -> None:
    """Drop it: everything has to be on one shard again."""
    op.create_index(
        "tasks_key_idx", "tasks", ["tenant", "idempotency_key"], unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )  # fmt: skip
    for trigger, table in (("shard_place", "tasks"), ("shard_claim", "tasks"), ("shard_place", "messages")):
        op.execute(f"DROP TRIGGER {trigger} ON {table}")
    for function in (
        "fleet_place_message()", "fleet_place_task()", "fleet_session_bucket(text, text)", "fleet_task_bucket(uuid)"
    ):  # fmt: skip
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("shard_strays")
    op.drop_table("shard_buckets")
