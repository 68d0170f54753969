"""For whom a run asks, by when, and out of whose purse."""

from dataclasses import dataclass
from datetime import datetime

from shared.resilience.spending import Budget


@dataclass(frozen=True, slots=True)
class Forebear:
    """A run that started this one, or one that started that."""

    agent: str
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """What guards must know beside the question."""

    tenant: str = "default"
    agent: str = "chat"
    run: str | None = None
    """Id of the run, for its budget."""
    deadline_at: datetime | None = None
    """After this nobody waits for an answer, not even for a static one."""
    must_act: bool | None = None
    """Whether words alone are no answer; None: as the agent's policy says."""
    forebears: tuple[Forebear, ...] = ()
    """The runs above this one, whose own budgets it draws on as well."""
    inherited: tuple[Budget, ...] = ()
    """Further budgets that it draws on."""
    scope: str = ""
    """Rights under which answers are made: a hash of roles, for example. They are kept apart by it."""
    user: str = ""
    """Set for personalised answers: they are given again to nobody else."""
    corpus: str = ""
    """Version of the documents behind the answers."""
    locale: str = ""
