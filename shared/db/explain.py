"""Where a unit of work would go now, in sentences."""

from dataclasses import dataclass

from shared.db import tokens
from shared.db.database import Database
from shared.db.decide import Consistency, Mode, Wish


@dataclass(frozen=True, slots=True)
class Explained:
    """A decision that nobody acts on."""

    node: str | None
    """None: the unit of work would fail."""
    reason: str
    considered: tuple[tuple[str, str], ...]
    """Each node, and what is thought of it."""


async def explain(
    database: Database,
    *,
    mode: Mode,
    consistency: Consistency = "primary",
    max_staleness_s: float | None = None,
    token: str | None = None,
) -> Explained:
    """Look at every node and decide for a unit of work that is not opened."""
    given = tokens.parse(token)
    about = f"; the token is at {given.position}" if given else ""
    unreadable = "" if token is None or given else "; the token cannot be read: it is ignored"
    router = database.router
    if router is None:
        url = database.url
        name = f"{url.host}:{url.port or 5432}"
        return Explained(name, f"there is one node{unreadable}", ((name, "the only node"),))
    await router.ready()
    await router.look_again()
    decision = router.explain(Wish(mode, consistency, max_staleness_s), given)
    what = {"overflow": " (only while few such reads are there)", "wait": ": wait for it"}.get(decision.verdict, "")
    considered = tuple((one.name, one.why) for one in router.cluster.standings)
    return Explained(decision.node, f"{decision.reason}{what}{about}{unreadable}", considered)
