"""`step.p50`, `step.rate`: what one journaled step costs a run: its intent and its result, both on disk.

`p50`: one run alone on an idle worker, measured in the agent's body around `run.step` with a function that does
nothing. `rate`: many runs at once on one worker process; completed steps a second, from the ledger's first `started_at`
to its last `finished_at`, claims and finishes included.
"""

from tests.bench.figures import Figure, percentile
from tests.bench.site import Site, fresh_tenant, say

ALONE_STEPS = 500
WARM_UP_STEPS = 100
RUNS = 200
STEPS_EACH = 100
WITHIN_S = 300.0


def measure(site: Site) -> list[Figure]:
    """Alone, then under load, on one worker."""
    with site.worker("step-worker"):
        site.run(alone(site, WARM_UP_STEPS))
        samples = site.run(alone(site, ALONE_STEPS))
        say(f"  alone: p50 {percentile(samples, 50):.2f} ms, p99 {percentile(samples, 99):.2f} ms")
        under_load(site, RUNS // 4, STEPS_EACH // 4)
        rate = under_load(site, RUNS, STEPS_EACH)
    return [
        Figure(
            name="step.p50", what="one journaled step, alone, p50", value=percentile(samples, 50), unit="ms", goal=1.5,
            better="lower",
        ),
        Figure(
            name="step.rate", what=f"journaled steps of one worker process, {RUNS} runs at once", value=rate,
            unit="steps/s", goal=3000.0, better="higher",
        ),
    ]  # fmt: skip


async def alone(site: Site, steps: int) -> list[float]:
    """Milliseconds of each step of one run."""
    task = await site.client.asubmit("bench-steps", {"number": steps}, tenant=fresh_tenant("step"))
    took: list[float] = await task.aresult(WITHIN_S)
    return took


def under_load(site: Site, runs: int, steps: int) -> float:
    """Steps a second."""
    tenant = fresh_tenant("steps")
    with site.holding_back():
        site.run(site.submit_many("bench-steps", runs, tenant=tenant, number=steps))
    ended = site.ended(tenant, runs, within_s=WITHIN_S)
    span_s, done = ended.last_finish - ended.first_start, runs * steps
    say(f"  {runs} runs of {steps} steps: {done} steps in {span_s:.2f} s, {done / span_s:.0f}/s")
    return done / span_s
