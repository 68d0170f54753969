"""The worker: agents as `async def` functions, run by stock Celery on an asyncio pool.

The way of a task through this room: `consumer` checks the message, `pool` gives it a slot, `execution` claims it in the
ledger, acknowledges it, runs the agent with a `Run`, and writes the end that `endings` decides on. `active` is a run as
those see it who stop it, `children` starts the tasks that a run leaves work to. `hosting` keeps the worker's place in
the ledger (heartbeat, fence). `main` is `celery -A workers.agents.main worker`.

It never lets the broker decide what is finished and never runs an agent whose claim is not committed. Agent authors
enter through `workers.agents.agent` and `workers.agents.run`; no other room of workers does.
"""
