"""The error tree: named by what the caller does next.

FleetError(message, code, **context)
|- Transient(retry_after_s)    try again: nothing is wrong with the request
|  |- DatabaseUnavailable      PostgreSQL does not answer
|  |  |- PrimaryLost           no node takes writes at the moment: nothing was written
|  |  |- PoolExhausted         this process holds all its connections to the node: says who
|  |  `- CommitUnknown         the answer to COMMIT was lost: look before writing it again
|  |- ShardMoved               the bucket is on another shard now, or on its way: look where, and try again there
|  |- ReplicaStale             no node may answer this read as fresh as it was asked for
|  |- PublishUnconfirmed       the broker did not confirm the message in time
|  |- NotAccepted              neither ledger nor broker took the task: nothing was stored
|  |- LLMUnavailable           the endpoint is down, overloaded or answered with an invalid body
|  |- LLMTimeout               no answer within the deadline
|  |- LLMRateLimited           the endpoint said when to come back
|  |- BreakerOpen              calls to this endpoint are stopped for now: ask another one
|  |- Throttled                a limit of our own says when to come back
|  |- RetryLater               the wait is too long to hold a slot: suspend the run
|  |- SessionUnavailable       Redis does not answer
|  |- VectorsUnavailable       the vector store does not answer
|  `- ResultPending            the task is not finished yet
|- Permanent                   the same request will fail again: report it
|  |- BadMessage               a message that no worker can read -> dead-letter queue
|  |- BadInput                 an agent's input does not fit; names the field
|  |- UnknownAgent             no worker has registered this name
|  |- UnknownTask              the ledger has no such task
|  |- LLMRefused               the endpoint refused the request (4xx)
|  |- PromptTooLong            no model of the chain takes so long a prompt
|  |- TooLarge                 a payload over the limit: store it elsewhere, pass a reference
|  |- TaskFailed               the task ended as failed; carries its error
|  |- TaskCancelled            the task was cancelled
|  |- ChildFailed              a child task failed or was cancelled; carries its error
|  |- WrongState               the task is not in a state that allows this
|  |- WaitTimeout              the awaited signal did not come in time
|  |- StepChanged              a replayed step does not match its journal
|  |- CrossShard               one unit of work would touch two shards
|  |- ReadOnlyUnit             a write in a unit of work that declared itself read-only
|  |- BudgetSpent              the run, agent, tenant or day may spend no more
|  |- SealBroken               a sealed value was altered, or belongs to another row
|  |- Fenced                   another worker owns this run now: stop, write nothing
|  `- DeadlineSpent            no time left
`- Misconfigured               refuse to start: a setting is wrong; names the variable and the remedy
   `- SealKeyUnknown           a value is sealed under a key that this process was not given
"""

from collections.abc import Mapping
from typing import Any


class FleetError(Exception):
    """A failure with a stable code for machines and a sentence for people.

    Args:
        message: One sentence; where a remedy exists, it ends with it.
        context: Facts that help, JSON-safe, never secrets.
    """

    code = "fleet_error"

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    def as_dict(self) -> dict[str, Any]:
        """The error as stored in the ledger and printed by `--json`."""
        return {"code": self.code, "message": self.message, **({"context": self.context} if self.context else {})}


def from_dict(data: Mapping[str, Any]) -> FleetError:
    """The error that `as_dict` was asked of; of an unknown code: a plain FleetError."""
    kinds = [FleetError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    kind = next((one for one in kinds if one.code == data["code"]), FleetError)
    return kind(data["message"], **data.get("context", {}))


class Transient(FleetError):
    """Worth another try; `retry_after_s` says when at the earliest (seconds, None: unknown)."""

    code = "transient"

    def __init__(self, message: str, *, retry_after_s: float | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.retry_after_s = retry_after_s


class DatabaseUnavailable(Transient):
    """PostgreSQL cannot be reached or lost the connection."""

    code = "database_unavailable"


class PrimaryLost(DatabaseUnavailable):
    """No node takes writes at the moment, or the one that did has just stopped: nothing was committed."""

    code = "primary_lost"


class PoolExhausted(DatabaseUnavailable):
    """Every connection that this process may open to a node is in use; the message says by whom."""

    code = "pool_exhausted"


class CommitUnknown(DatabaseUnavailable):
    """The connection broke between COMMIT and its answer: the work is committed or it is not.

    Never simply done again: look whether it is there, by its idempotency key, or write it so that twice is once.
    """

    code = "commit_unknown"


class ReplicaStale(Transient):
    """No node may answer this read as fresh as it was asked for; the primary has no room for it either."""

    code = "replica_stale"


class ShardMoved(Transient):
    """What was to be read or written has moved to another shard, or is being moved: nothing was done."""

    code = "shard_moved"


class PublishUnconfirmed(Transient):
    """The broker did not confirm a message within the time limit; it may or may not have it."""

    code = "publish_unconfirmed"


class NotAccepted(Transient):
    """Neither the ledger nor the broker took the task."""

    code = "not_accepted"


class LLMUnavailable(Transient):
    """The endpoint is down, overloaded, or its answer is not a valid completion."""

    code = "llm_unavailable"


class LLMTimeout(Transient):
    """No complete answer within the time limit."""

    code = "llm_timeout"


class LLMRateLimited(Transient):
    """The endpoint asked to slow down."""

    code = "llm_rate_limited"


class BreakerOpen(Transient):
    """Calls to this key are stopped; without `retry_after_s` an operator has to let them through again."""

    code = "breaker_open"


class Throttled(Transient):
    """A limit of our own refused the call before it was sent; `cause` in the context names the limit."""

    code = "throttled"


class RetryLater(Transient):
    """Worth another try, but so late that the run must not hold its slot meanwhile."""

    code = "retry_later"


class SessionUnavailable(Transient):
    """The session cache (Redis) cannot be reached."""

    code = "session_unavailable"


class VectorsUnavailable(Transient):
    """The vector store cannot be reached."""

    code = "vectors_unavailable"


class ResultPending(Transient):
    """The task did not finish within the time the caller was ready to wait."""

    code = "result_pending"


class Permanent(FleetError):
    """The same request will fail again."""

    code = "permanent"


class BadMessage(Permanent):
    """A broker message that no worker can read."""

    code = "bad_message"


class BadInput(Permanent):
    """An input that does not fit; the message names the field."""

    code = "bad_input"


class TooLarge(BadInput):
    """A payload over the limit."""

    code = "too_large"


class UnknownAgent(Permanent):
    """No worker has registered an agent of this name."""

    code = "unknown_agent"


class UnknownTask(Permanent):
    """The ledger has no task with this id."""

    code = "unknown_task"


class LLMRefused(Permanent):
    """The endpoint refused the request itself."""

    code = "llm_refused"


class PromptTooLong(Permanent):
    """A prompt over the context of every model that may be asked; nothing was sent."""

    code = "prompt_too_long"


class TaskFailed(Permanent):
    """The task ended as failed; `error` is what the ledger recorded."""

    code = "task_failed"


class TaskCancelled(Permanent):
    """The task was cancelled, by its owner or with its parent."""

    code = "task_cancelled"


class ChildFailed(Permanent):
    """A child task did not succeed; `error` is what the ledger recorded."""

    code = "child_failed"


class WrongState(Permanent):
    """The task is in a state in which this cannot be done; nothing was changed."""

    code = "wrong_state"


class WaitTimeout(Permanent):
    """A signal that a run waited for did not come in time."""

    code = "wait_timeout"


class StepChanged(Permanent):
    """A replayed step asks for something else than its journal recorded."""

    code = "step_changed"


class BudgetSpent(Permanent):
    """A budget in tokens or money has not enough left for this call; the context names which."""

    code = "budget_spent"


class CrossShard(Permanent):
    """What was asked for is on two shards, such as a transaction, or a child away from its parent: keep it on one."""

    code = "cross_shard"


class ReadOnlyUnit(Permanent):
    """A write in a unit of work that declared itself read-only: a mistake of the program, sent to no server."""

    code = "read_only_unit"


class SealBroken(Permanent):
    """A sealed value does not open: altered, cut off, moved from another row, or its key id stands for another key."""

    code = "seal_broken"


class Fenced(Permanent):
    """This run belongs to another worker now; nothing more may be written."""

    code = "fenced"


class DeadlineSpent(Permanent):
    """The task's deadline has passed."""

    code = "deadline_spent"


class Misconfigured(FleetError):
    """A setting that would lose work or cannot work: the process refuses to start."""

    code = "misconfigured"


class SealKeyUnknown(Misconfigured):
    """A sealed value names a key that this process was not given: nothing is wrong with the value."""

    code = "seal_key_unknown"
