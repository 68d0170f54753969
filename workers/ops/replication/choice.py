"""Which replica is promoted: a pure decision with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.errors import Misconfigured
from workers.ops.replication.look import Look
from workers.ops.replication.refusals import AlreadyPrimary, NoReplica, ReplicaBehind, ReplicaUnseen


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is known, and what the operator wants."""

    looks: Mapping[str, Look]
    """Every node, in the order of preference between equals."""

    leader: str
    barred: frozenset[str] = frozenset()
    """Fenced nodes: they may hold rows that nobody else has."""

    to: str | None = None
    force: bool = False
    synchronous: bool = False
    max_behind_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Whom to promote, and why."""

    node: str
    reason: str


def choose(question: Question) -> Choice:
    """Choose the most advanced replica, or the one asked for.

    Raises: Misconfigured for an unknown name; NoReplica, AlreadyPrimary, ReplicaBehind, ReplicaUnseen.
    """
    leader = question.looks[question.leader]
    if question.to is not None and question.to not in question.looks:
        raise Misconfigured(f"There is no PostgreSQL node named {question.to}; known: {', '.join(question.looks)}.")
    if question.to == question.leader and leader.is_primary:
        raise AlreadyPrimary(f"{question.to} is the primary already.", node=question.to)
    unfit = {name: _why_not(question, name) for name in question.looks if name != question.leader}
    fit = [question.looks[name] for name, reason in unfit.items() if not reason]
    if not fit:
        raise NoReplica(_nobody(unfit))
    if question.to is not None and question.to not in {one.name for one in fit}:
        raise NoReplica(f"{question.to} cannot be promoted: {unfit.get(question.to) or 'it leads'}.", node=question.to)
    unseen = [name for name, reason in unfit.items() if reason]
    if question.synchronous and unseen and not leader.is_primary and not question.force:
        raise ReplicaUnseen(
            f"{unseen[0]} cannot be asked ({unfit[unseen[0]]}) and may hold acknowledged writes that no other replica "
            "has; bring it back, or accept their loss with --force.",
            node=unseen[0],
        )
    best = max(fit, key=lambda one: one.lsn)
    chosen = question.looks[question.to] if question.to is not None else best
    _insist_on_nearness(question, chosen, ahead=leader if leader.is_primary and leader.lsn > best.lsn else best)
    if chosen.lsn == best.lsn:
        others = ", ".join(one.name for one in fit if one is not chosen)
        return Choice(node=chosen.name, reason="it has all that any replica has" if others else "it is the one replica")
    return Choice(node=chosen.name, reason=f"it was asked for, {best.lsn - chosen.lsn} bytes behind {best.name}")


def _why_not(question: Question, name: str) -> str:
    seen, leader = question.looks[name], question.looks[question.leader]
    if not seen.answers:
        return seen.detail or "it does not answer"
    if name in question.barred:
        return "it is fenced and has not been taken back"
    if leader.answers and seen.system_id != leader.system_id:
        return f"it belongs to another system ({seen.system_id})"
    return "" if seen.is_standby else "it is no standby"


def _nobody(unfit: Mapping[str, str]) -> str:
    if not unfit:
        return "This fleet has one PostgreSQL and no replica; start it with `fleet up --replicas 1`."
    return "No replica can be promoted: " + "; ".join(f"{name}: {reason}" for name, reason in unfit.items()) + "."


def _insist_on_nearness(question: Question, chosen: Look, *, ahead: Look) -> None:
    behind = ahead.lsn - chosen.lsn
    if behind > question.max_behind_bytes and not question.force:
        raise ReplicaBehind(
            f"{chosen.name} lacks {behind} bytes of WAL that {ahead.name} has, more than {question.max_behind_bytes}; "
            "wait until it has caught up, or accept the loss with --force.",
            node=chosen.name,
            behind_bytes=behind,
        )
