"""What runs in the storm: agents of a few steps, each a call to the outside world that is counted there."""

from tests.fakes.call_counter import call
from workers.agents.agent import agent
from workers.agents.run import Run


@agent("storm.steps")
async def steps(run: Run, count: int, url: str) -> list[str]:
    """So many calls, one after the other."""
    return [await run.step("call", call, url, str(run.task_id), str(number)) for number in range(count)]


@agent("storm.sleeper")
async def sleeper(run: Run, count: int, url: str, sleep_s: float) -> list[str]:
    """The same, with a pause that gives the slot back after the first call."""
    said = []
    for number in range(count):
        said.append(await run.step("call", call, url, str(run.task_id), str(number)))
        if number == 0:
            await run.sleep(sleep_s)
    return said


@agent("storm.family")
async def family(run: Run, count: int, url: str) -> list[str]:
    """Two calls of its own, the others by children."""
    said = [await run.step("call", call, url, str(run.task_id), "0")]
    children = [await run.spawn("storm.steps", {"count": 1, "url": url}, max_attempts=100) for _ in range(count - 2)]
    answers = await run.gather(children)
    said += [answer for one in answers for answer in one]
    return [*said, await run.step("call", call, url, str(run.task_id), "1")]
