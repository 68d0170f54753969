"""The words that producers, the broker and workers agree on: names, the versioned message, its JSON Schema.

A message is an ordinary Celery protocol 2 message, so that any Celery client can send one, plus one optional header
`fleet` with what Celery has no word for. It carries the whole task: a worker can run it before the ledger knows it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import BadInput, BadMessage

VERSION: Literal[1] = 1
Priority = Literal["interactive", "normal", "batch"]
QUEUE = "agent.tasks"
QUEUES: dict[Priority, str] = {"interactive": f"{QUEUE}.interactive", "normal": QUEUE, "batch": f"{QUEUE}.batch"}
"""One queue a priority, so that each can have workers of its own."""
DEAD_QUEUE = "agent.tasks.dead"
CANCEL_CHANNEL = "fleet:cancel"
"""Redis pub/sub: ids of running tasks that are to stop at once; a hint, the flag in the ledger is the truth."""
TASK_PREFIX = "agents."
BUCKETS = 1024
"""Parts in which sessions and tasks are spread over shards, and moved between them."""
DEFAULT_TENANT = "default"
DEFAULT_MAX_ATTEMPTS = 3
CONTENT_TYPE: Literal["application/json"] = "application/json"
CAUSAL_HEADER = "wt"
"""The message header that says which writes the task's reads must not miss; see `shared/db/carriage.py`."""

_KEYED_TASKS = uuid5(NAMESPACE_URL, "agent-fleet:idempotency-key")
_TICKS = uuid5(NAMESPACE_URL, "agent-fleet:schedule")

AgentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,98}$")]
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\u0000]*$")]


class FleetHeader(BaseModel):
    """The header `fleet`: what a task needs beyond Celery's own headers. Absent means all defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = VERSION
    tenant: Label = DEFAULT_TENANT
    session: Label | None = None
    idempotency_key: Label | None = Field(
        None,
        description="The task id must then be keyed_task_id(tenant, key); of a task with a session, where there are"
        " several shards, keyed_task_id(tenant, key, session).",
    )
    deadline_at: AwareDatetime | None = Field(None, description="RFC 3339; a task not finished by then ends as failed.")
    max_attempts: Annotated[int, Field(ge=1, le=100)] = DEFAULT_MAX_ATTEMPTS
    priority: Priority = Field(
        "normal", description="Publish to agent.tasks.interactive, agent.tasks or agent.tasks.batch."
    )
    available_at: AwareDatetime | None = Field(None, description="RFC 3339; it waits in the ledger until then.")
    parent_id: UUID | None = Field(None, description="The task that spawned it; cancelled with it.")
    root_agent: AgentName | None = Field(None, description="The agent whose max_running it counts against.")

    @classmethod
    def checked(cls, **values: Any) -> "FleetHeader":
        """A header from a producer's own values.

        Raises: BadInput naming the field.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadInput(first_problem(error)) from None


class Headers(BaseModel):
    """The message headers that a worker reads; Celery clients add more, which are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    task: Annotated[str, Field(pattern=r"^agents\.[a-z][a-z0-9_.-]{0,98}$", description="agents.<name>")]
    id: UUID = Field(description="The task's id, in Celery, in Flower and in the ledger.")
    lang: str = "py"
    fleet: FleetHeader = FleetHeader()
    wt: Any = Field(
        None, description="A causal token: the task's reads see what its producer had written. Unreadable: ignored."
    )

    @property
    def token(self) -> str | None:
        """`wt` if it is text at all."""
        return self.wt if isinstance(self.wt, str) else None


class Properties(BaseModel):
    """The AMQP basic properties; delivery_mode 2 keeps the message on disk."""

    content_type: Literal["application/json"] = CONTENT_TYPE
    content_encoding: Literal["utf-8"] = "utf-8"
    delivery_mode: Literal[2] = 2
    correlation_id: UUID | None = None


class WireMessage(BaseModel):
    """One task on the wire: publish `body` as JSON to the default exchange; the routing key is the queue's name."""

    properties: Properties = Properties()
    headers: Headers
    body: tuple[list[Any], dict[str, Any], dict[str, Any] | None] = Field(
        description="[positional inputs, named inputs, Celery's embed (may be null)]"
    )


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """A task as it travels: who asks, which agent, with what input."""

    agent: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    id: UUID = field(default_factory=uuid4)
    fleet: FleetHeader = field(default_factory=FleetHeader)
    token: str | None = None
    """A causal token as text, a stranger's word: a hint that is lost where the ledger alone remembers the task."""

    @property
    def queue(self) -> str:
        """The queue of its priority."""
        return QUEUES[self.fleet.priority]

    @property
    def task_name(self) -> str:
        """The Celery task name, `agents.<agent>`."""
        return TASK_PREFIX + self.agent

    def wire_headers(self) -> dict[str, Any]:
        """Celery protocol 2 headers plus `fleet`; inputs are never repeated in argsrepr or kwargsrepr."""
        task_id = str(self.id)
        return {
            "lang": "py", "task": self.task_name, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
            "retries": 0, "timelimit": [None, None], "eta": None, "expires": None, "shadow": None,
            "ignore_result": True, "argsrepr": "()", "kwargsrepr": f"{{{', '.join(sorted(self.kwargs))}}}",
            "fleet": self.fleet.model_dump(mode="json", exclude_none=True),
            **({CAUSAL_HEADER: self.token} if self.token is not None else {}),
        }  # fmt: skip

    def wire_body(self) -> bytes:
        """The JSON body `[args, kwargs, embed]`.

        Raises: BadInput when the input is not JSON.
        """
        if not all(isinstance(name, str) for name in self.kwargs):
            raise BadInput(f"the inputs of agent {self.agent!r} must be named by text", agent=self.agent)
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        try:
            return json.dumps([list(self.args), dict(self.kwargs), embed], allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"the input of agent {self.agent!r} is not JSON: {error}", agent=self.agent) from None


_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped U+0000 in JSON text, and not the six characters \\u0000 after an escaped backslash."""
_agent_name = TypeAdapter(AgentName)


def checked_agent_name(name: str) -> str:
    """The name itself when it can name an agent.

    Raises: BadInput otherwise.
    """
    try:
        return _agent_name.validate_python(name)
    except ValidationError:
        raise BadInput(
            f"agent name {name!r} must start with a letter and hold only a-z, 0-9, '_', '.', '-' (at most 99)"
        ) from None


def bucket_of(tenant: str, session: str) -> int:
    """The bucket of a session: its messages and its tasks are on one shard. `fleet_session_bucket` is its twin in SQL.

    Returns: 0 to 1023.
    """
    digest = sha256(f"{tenant}\x00{session}".encode()).digest()
    return (digest[0] | digest[1] << 8) % BUCKETS


def bucket_in(task_id: UUID) -> int:
    """The bucket of a task: the last ten bits of its id. `fleet_task_bucket` is its twin in SQL."""
    return task_id.int % BUCKETS


def with_bucket(task_id: UUID, bucket: int) -> UUID:
    """The same id in another bucket."""
    return UUID(int=task_id.int - bucket_in(task_id) + bucket)


def new_task_id(tenant: str, session: str | None) -> UUID:
    """An id that nobody has had: in the bucket of the session, or in any."""
    task_id = uuid4()
    return task_id if session is None else with_bucket(task_id, bucket_of(tenant, session))


def child_task_id(parent: UUID, name: str, ordinal: int) -> UUID:
    """The one id of a child, in its parent's bucket: spawned again, on another worker, it gets the same one."""
    return with_bucket(uuid5(parent, f"{name}\x00{ordinal}"), bucket_in(parent))


def tick_task_id(schedule: str, at: datetime, *, tenant: str = DEFAULT_TENANT, session: str | None = None) -> UUID:
    """The one task of a schedule's tick, however many keepers see it: in the bucket of its session, if it has one."""
    task_id = uuid5(_TICKS, f"{schedule}\x00{at.astimezone(UTC).isoformat()}")
    return task_id if session is None else with_bucket(task_id, bucket_of(tenant, session))


def is_tick(task_id: UUID, schedule: str, at: datetime) -> bool:
    """Whether the task is of this tick, whatever its session."""
    return with_bucket(tick_task_id(schedule, at), bucket_in(task_id)) == task_id


def keyed_task_id(tenant: str, idempotency_key: str, session: str | None = None) -> UUID:
    """The one task id that an idempotency key can have: same key, same task, even while the ledger is away.

    Args:
        session: Only where there are several shards: the key then holds within it, and the id is in its bucket.
    """
    if session is None:
        return uuid5(_KEYED_TASKS, f"{tenant}\x00{idempotency_key}")
    keyed = uuid5(_KEYED_TASKS, json.dumps([tenant, session, idempotency_key]))
    return with_bucket(keyed, bucket_of(tenant, session))


def parse(headers: Mapping[str, Any] | None, body: bytes | str) -> TaskMessage:
    """Read a message from the wire.

    Args:
        headers: The message headers as received.
        body: The body as received, JSON `[args, kwargs, embed]`.

    Raises: BadMessage with one sentence that names the field.
    """
    fields = parse_headers(headers)
    try:
        args, kwargs, _embed = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        raise BadMessage("the body is not JSON of the form [args, kwargs, embed]") from None
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BadMessage("the body must be [array of inputs, object of inputs, embed]")
    return TaskMessage(
        fields.task.removeprefix(TASK_PREFIX), kwargs, tuple(args), fields.id, fields.fleet, fields.token
    )


def parse_headers(headers: Mapping[str, Any] | None) -> Headers:
    """Read and check the headers alone: cheap enough for every delivery.

    Raises: BadMessage with one sentence that names the field.
    """
    try:
        read = Headers.model_validate(headers or {})
    except ValidationError as error:
        raise BadMessage(first_problem(error)) from None
    fleet = read.fleet
    key = fleet.idempotency_key
    if key is not None and read.id not in (
        keyed_task_id(fleet.tenant, key),
        keyed_task_id(fleet.tenant, key, fleet.session),
    ):
        raise BadMessage(
            "header id must be the keyed task id of header fleet.tenant and fleet.idempotency_key (with several shards"
            " also of fleet.session)"
        )
    return read


def check_storable(inputs: Any) -> None:
    """Whether PostgreSQL's json can hold this: no NaN, no U+0000, no half of a surrogate pair.

    Raises: BadInput.
    """
    try:
        text = json.dumps(inputs, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"the input cannot be stored: {error}") from None
    if _NUL.search(text):
        raise BadInput("the input holds the character U+0000, which PostgreSQL cannot store: remove it")


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation as `field: what is wrong`."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "input"
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def message_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a message, for producers in any language."""
    schema = WireMessage.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "agent-fleet task message, version 1",
        **{name: value for name, value in schema.items() if name != "title"},
    }
