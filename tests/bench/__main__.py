"""`python -m tests.bench [NAME]`: run all benchmarks or one, print one JSON line per figure."""

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping

from tests.bench import (
    breaker,
    causal_read,
    failover,
    failover_db,
    fleet_limits,
    growth,
    guarded_call,
    inflight5s,
    latency,
    ledger_poll,
    noop,
    read_scaling,
    resume,
    route,
    step,
)
from tests.bench.figures import Figure
from tests.bench.readme import END, START, rewritten
from tests.bench.site import Site, opened, say
from workers.ops.surroundings import ROOT

BENCHMARKS: dict[str, Callable[[Site], list[Figure]]] = {
    "latency": latency.measure,
    "noop": noop.measure,
    "inflight5s": inflight5s.measure,
    "step": step.measure,
    "ledger_poll": ledger_poll.measure,
    "resume": resume.measure,
    "growth": growth.measure,
    "breaker": breaker.measure,
    "fleet_limits": fleet_limits.measure,
    "guarded_call": guarded_call.measure,
    "failover": failover.measure,
    "failover_db": failover_db.measure,
    "route": route.measure,
    "causal_read": causal_read.measure,
    "read_scaling": read_scaling.measure,
}


def main() -> int:
    """Measure; a full run also renews the README's table. One benchmark that fails does not lose the others' figures.

    Returns: 1 when one failed.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="one benchmark instead of all")
    name = parser.parse_args().name
    say("bench: starting PostgreSQL, its replica, RabbitMQ, Redis, vectors and the keeper")
    with opened() as site:
        figures, failed = measured({name: BENCHMARKS[name]} if name else BENCHMARKS, site)
    if failed:
        say(f"bench: failed: {', '.join(failed)}; the README's table is left as it is")
    elif name is None:
        renew(figures)
    sys.stderr.flush()
    for figure in figures:
        print(figure.line(), flush=True)
    return 1 if failed else 0


def measured(
    benchmarks: Mapping[str, Callable[[Site], list[Figure]]], site: Site
) -> tuple[list[Figure], list[str]]:  # fmt: skip
    """The figures of those that ended well, and the names of the others."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name, measure in benchmarks.items():
        say(f"bench: {name}")
        try:
            figures += measure(site)
        except Exception:  # whatever went wrong with one, hours of others are not thrown away: told, and counted
            say(f"bench: {name} failed:\n{traceback.format_exc()}")
            failed.append(name)
    return figures, failed


def renew(figures: list[Figure]) -> None:
    """Write the table into the README, or say why not."""
    path = ROOT / "README.md"
    text = rewritten(path.read_text("utf-8"), figures) if path.exists() else None
    if text is None:
        say(f"bench: no table written: README.md has no lines {START} and {END}")
        return
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
