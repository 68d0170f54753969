"""Every table of the fleet, as SQLAlchemy Core: the migrations' target and the ledger's vocabulary.

Payloads are `json`, not `jsonb`: they are stored and given back, never searched, and json keeps them to the letter.
No foreign keys on the hot path: a step is only ever written by a statement that is fenced by its task's row.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
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
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("dispatch_at", DateTime(timezone=True), comment="when the keeper publishes it (again) if still queued"),
    Column("deadline_at", DateTime(timezone=True)),
    Column("started_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed')", name="state"),
    Index(
        "tasks_key_idx", "tenant", "idempotency_key", unique=True, postgresql_where=text("idempotency_key IS NOT NULL")
    ),
    Index("tasks_queued_idx", "dispatch_at", postgresql_where=text("state = 'queued'")),
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
    Column(
        "executions", SmallInteger, nullable=False, server_default="1", comment="intents so far; > 1: in doubt once"
    ),
    Column("repeats", SmallInteger, nullable=False, server_default="0", comment="intents after it was done: always 0"),
    Column("state", Text, nullable=False, server_default="intent"),
    Column("result", JSON),
    Column("usage", JSON, comment="tokens of a model call"),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("finished_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("task_id", "name", "ordinal"),
    CheckConstraint("state IN ('intent', 'done', 'failed')", name="state"),
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
