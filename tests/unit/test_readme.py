"""The agent that the README shows is run as it stands there."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

from shared.errors import BadInput
from tests.fakes.fake_world import FakeWorld
from workers.agents.agent import AGENTS

README = Path(__file__).parents[2] / "README.md"
NAME = "my_agents"
TEXT = "Cats sleep. Dogs bark. Fish swim."


def shown() -> str:
    """The one block of Python that is a whole module: `# my_agents.py` is its first line."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(f"# {NAME}.py\n")]
    return block


@pytest.fixture
def module() -> Iterator[ModuleType]:
    before = dict(AGENTS)
    module = ModuleType(NAME)
    sys.modules[NAME] = module
    exec(compile(shown(), str(README), "exec"), vars(module))
    yield module
    del sys.modules[NAME]
    AGENTS.clear()
    AGENTS.update(before)


async def test_the_agent_of_the_readme_summarises(module: ModuleType) -> None:
    world = FakeWorld("Animals do things.")
    output = await world.execute(world.run(), "summarise", {"text": TEXT})
    assert output == {"summary": "Animals do things.", "words": 6, "tokens": 5}
    (request,) = world.chat.requests
    assert request.messages[-1].content == f"Summarise in 2 sentences:\n{TEXT}"
    assert request.max_tokens == 200


async def test_the_agent_of_the_readme_pays_nothing_twice(module: ModuleType) -> None:
    world, task = FakeWorld("Animals do things."), uuid4()
    first = await world.execute(world.run(task), "summarise", {"text": TEXT, "sentences": 1})
    resumed = world.run(task, attempt=2)
    assert await world.execute(resumed, "summarise", {"text": TEXT, "sentences": 1}) == first
    assert (resumed.report()["steps_executed"], resumed.report()["steps_replayed"]) == (0, 2)
    assert len(world.chat.requests) == 1


def test_the_agent_of_the_readme_refuses_what_its_types_do_not_say(module: ModuleType) -> None:
    assert inspect.iscoroutinefunction(module.summarise)
    with pytest.raises(BadInput, match=r"^agent 'summarise': text: field required"):
        AGENTS["summarise"].inputs.check((), {})
