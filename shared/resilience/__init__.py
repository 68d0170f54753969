"""Patterns for a world that fails: the only home of tenacity and pybreaker.

What it is: `Gate` (breaker, limits, retry budget and budgets of a key in one question before a call and one report
after it), `FleetBreaker` (pybreaker's surface over the same state machine), `retried`, `Deadline`, and a loop for
callers that may be interrupted. State lives in Redis, by the server's clock, for all processes together; without Redis
the same machine goes on in memory. The decisions are pure (`circuit`, `lanes`, `spending`); the scripts in `lua/` are
their twins and pass the same tests.
What it never does: know what is called. A key is a text; models, brokers and databases are for the rooms above. It
never holds a lock during a guarded call, and never lets a call fail because its own store is away.
Who may enter: every room above, through `gate`, `fleet_breaker`, `retry`, `deadline`, `knobs` and `spending`; whoever
waits for Redis in a process that may be late itself, through `line.heard_within`.
"""
