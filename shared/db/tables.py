"""Every table of the fleet, as SQLAlchemy Core: the migrations' target and the ledger's vocabulary.

Payloads are `json`, not `jsonb`: they are stored and given back, never searched, and json keeps them to the letter.
No foreign keys on the hot path: a step is only ever written by a statement that is fenced by its task's row.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "pk": "%(table_name)s_pkey",
    }
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("session_id", Text),
    Column("idempotency_key", Text),
    Column("input", JSON, nullable=False, comment='{"args": […], "kwargs": {…}}'),
    Column("state", Text, nullable=False, server_default="queued"),
    Column("epoch", Integer, nullable=False, server_default="0", comment="grows at every claim and takeover"),
    Column("attempt", SmallInteger, nullable=False, server_default="0", comment="claims that were not handed back"),
    Column("max_attempts", SmallInteger, nullable=False, server_default="3"),
    Column("worker_id", Uuid, comment="who runs it; null unless running"),
    Column("output", JSON),
    Column("error", JSON),
    Column("report", JSON, comment="level, tokens and other figures of the finished run"),
    Column("priority", Text, nullable=False, server_default="normal"),
    Column("parent_id", Uuid, comment="the task that spawned it"),
    Column("root_agent", Text, comment="the agent whose max_running it counts against; null: its own"),
    Column("forked_from", Uuid),
    Column("wake_at", DateTime(timezone=True), comment="when a waiting task goes on at the latest"),
    Column("waiting_for", JSON, comment='{"kind": "start|sleep|retry|signal|children", …}'),
    Column("wakes", Integer, nullable=False, server_default="0", comment="signals and ends of children so far"),
    Column("cancel_requested_at", DateTime(timezone=True)),
    Column("published_at", DateTime(timezone=True), comment="since when a message stands for it; null: held"),
    Column("discarded_at", DateTime(timezone=True), comment="an operator took it off the list of the failed"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("dispatch_at", DateTime(timezone=True), comment="held: its place in line; published: when to again"),
    Column("deadline_at", DateTime(timezone=True)),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    CheckConstraint(
        "state IN ('queued', 'running', 'waiting', 'parked', 'succeeded', 'failed', 'cancelled')", name="state"
    ),
    CheckConstraint("priority IN ('interactive', 'normal', 'batch')", name="priority"),
    Index(
        "tasks_held_idx",
        "priority",
        "tenant",
        "dispatch_at",
        postgresql_where=text("state = 'queued' AND published_at IS NULL"),
    ),
    Index(
        "tasks_published_idx",
        "tenant",
        "published_at",
        postgresql_where=text("state = 'queued' AND published_at IS NOT NULL"),
    ),
    Index("tasks_waiting_idx", "wake_at", postgresql_where=text("state = 'waiting'")),
    Index(
        "tasks_deadline_idx",
        "deadline_at",
        postgresql_where=text("deadline_at IS NOT NULL AND state IN ('queued', 'running', 'waiting', 'parked')"),
    ),
    Index("tasks_parent_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index(
        "tasks_awaiting_idx",
        "id",
        postgresql_where=text("state = 'waiting' AND (waiting_for -> 'ids') IS NOT NULL"),
    ),
    Index(
        "tasks_kin_idx",
        "parent_id",
        postgresql_where=text("parent_id IS NOT NULL AND state IN ('queued', 'running', 'waiting', 'parked')"),
    ),
    Index("tasks_parked_idx", "agent", postgresql_where=text("state = 'parked'")),
    Index("tasks_failed_idx", "finished_at", postgresql_where=text("state = 'failed' AND discarded_at IS NULL")),
    Index("tasks_running_idx", "worker_id", postgresql_where=text("state = 'running'")),
    Index("tasks_created_idx", "created_at"),
)

steps = Table(
    "steps",
    metadata,
    Column("task_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("ordinal", Integer, nullable=False, comment="how many steps of this name came before, from 0"),
    Column("kind", Text, nullable=False, comment="llm, tool, retrieval or step"),
    Column("fingerprint", Text, nullable=False, comment="hash of name, ordinal and the request"),
    Column("epoch", Integer, nullable=False, comment="the claim that wrote the intent"),
    Column("executions", SmallInteger, nullable=False, server_default="1", comment="intents so far, retries included"),
    Column("in_doubt", SmallInteger, nullable=False, server_default="0", comment="intents that nobody saw end"),
    Column("repeats", SmallInteger, nullable=False, server_default="0", comment="intents after it was done: always 0"),
    Column("state", Text, nullable=False, server_default="intent"),
    Column("result", JSON),
    Column("in_blob", Boolean, nullable=False, server_default="false", comment="the result is in `blobs`"),
    Column("until", DateTime(timezone=True), comment="waiting: when it is over at the latest"),
    Column("usage", JSON, comment="tokens of a model call"),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("task_id", "name", "ordinal"),
    CheckConstraint("state IN ('intent', 'waiting', 'done', 'failed')", name="state"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("task_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("data", JSON, nullable=False),
    PrimaryKeyConstraint("task_id", "name", "ordinal"),
)

signals = Table(
    "signals",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("task_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("signals_task_idx", "task_id", "name", "id"),
)

limits = Table(
    "limits",
    metadata,
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("max_running", Integer, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("scope", "name"),
    CheckConstraint("scope IN ('tenant', 'agent')", name="scope"),
    CheckConstraint("max_running >= 0", name="max_running"),
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("input", JSON, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("session_id", Text),
    Column("priority", Text, nullable=False, server_default="normal"),
    Column("max_attempts", SmallInteger, nullable=False, server_default="3"),
    Column("deadline_s", Float, comment="seconds from the tick"),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False, server_default="UTC"),
    Column("is_paused", Boolean, nullable=False, server_default="false"),
    Column("next_at", DateTime(timezone=True), nullable=False),
    Column("last_at", DateTime(timezone=True)),
    Column("last_task_id", Uuid),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("schedules_next_idx", "next_at", postgresql_where=text("NOT is_paused")),
)

terms = Table(
    "terms",
    metadata,
    Column("role", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False, comment="grows with every leader; a stale one writes nothing"),
    Column("holder", Text, nullable=False),
    Column("backend_pid", Integer, nullable=False, comment="the server process that holds the advisory lock"),
    Column("renewed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("state", Text, nullable=False, server_default="alive"),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("state IN ('alive', 'draining', 'stopped', 'dead')", name="state"),
)

agents = Table(
    "agents",
    metadata,
    Column("name", Text, primary_key=True),
    Column("input_schema", JSONB, nullable=False, comment="JSON Schema of the named inputs"),
    Column("max_running", Integer, comment="as its author declared it; `limits` is what counts"),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

messages = Table(
    "messages",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("session_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("task_id", Uuid),
    Column("ordinal", Integer, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("task_id", "ordinal"),
    Index("messages_session_idx", "tenant", "session_id", "id"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("reason", Text, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("body", Text, nullable=False, comment="as received; base64 when it is not UTF-8"),
)

db_heartbeat = Table(
    "db_heartbeat",
    metadata,
    Column("is_only", Boolean, primary_key=True, server_default=text("true")),
    Column("beat_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
    CheckConstraint("is_only", name="is_only"),
)
"""One row, written on the primary about once a second by whoever looks at it: its age on a replica is the lag there."""

db_reads = Table(
    "db_reads",
    metadata,
    Column("process", Text, primary_key=True, comment="its application_name"),
    Column("node", Text, primary_key=True),
    Column("reads", BigInteger, nullable=False, comment="since it told the last time"),
    Column("told_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
    prefixes=["UNLOGGED"],
)
"""Where each process with several nodes sent its reads lately. What is old says nothing and is deleted."""

shard_buckets = Table(
    "shard_buckets",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False, comment="grows with every move"),
    Column("state", Text, nullable=False),
    Column("shard", Text, nullable=False, comment="where it is, as far as this shard knows"),
    CheckConstraint("bucket BETWEEN 0 AND 1023", name="bucket"),
    CheckConstraint("state IN ('open', 'moving', 'moved', 'arriving')", name="state"),
)
"""Empty: no bucket was ever moved, and triggers on `tasks` and `messages` that look here are disabled.

open: here. moving: here, on its way to another shard, and no task of it is claimed. moved: elsewhere. arriving: not yet
here. `epoch` and `shard` say where it is; the greatest epoch of all shards is right.
"""

shard_strays = Table("shard_strays", metadata, Column("task_id", Uuid, primary_key=True))
"""Tasks that were handed in here and belong to another shard: the keeper takes them there."""
