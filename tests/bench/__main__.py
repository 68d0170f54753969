"""`python -m tests.bench [NAME]`: run all benchmarks or one, print one JSON line per figure."""

import argparse
import sys
from collections.abc import Callable

from tests.bench import (
    breaker,
    failover,
    failover_db,
    fleet_limits,
    growth,
    guarded_call,
    inflight5s,
    latency,
    ledger_poll,
    noop,
    resume,
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
}


def main() -> None:
    """Measure; a full run also renews the README's table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="one benchmark instead of all")
    name = parser.parse_args().name
    figures: list[Figure] = []
    say("bench: starting PostgreSQL, its replica, RabbitMQ, Redis, vectors and the keeper")
    with opened() as site:
        for each in [name] if name else BENCHMARKS:
            say(f"bench: {each}")
            figures += BENCHMARKS[each](site)
    if name is None:
        renew(figures)
    sys.stderr.flush()
    for figure in figures:
        print(figure.line(), flush=True)


def renew(figures: list[Figure]) -> None:
    """Write the table into the README, or say why not."""
    path = ROOT / "README.md"
    text = rewritten(path.read_text("utf-8"), figures) if path.exists() else None
    if text is None:
        say(f"bench: no table written: README.md has no lines {START} and {END}")
        return
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
