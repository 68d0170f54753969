"""llmock's verdict on the whole plane: a chain behind `open_plane`, its first model served and judged by llmock."""

from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest
import pytest_asyncio
from llmock.pytest_plugin import LLMock
from redis.asyncio import Redis

from shared.llm.adapters import DialectName
from shared.llm.call_context import CallContext
from shared.llm.config_file import read_text
from shared.llm.guarded import GuardedChat
from shared.llm.messages import ChatReply, ChatRequest, Message
from shared.llm.plane import LLMPlane, open_plane
from shared.resilience.memory_store import MemoryStore
from tests.fakes.provider import Provider

FILE = """\
version: 1
endpoints:
  mock:
    base_url: "MOCK"
    dialect: DIALECT
    stream_answers: true
    timeouts: {first_token_s: 20, idle_s: 2, total_s: 60}
    retry: {base_s: 0.05}
  backup: {base_url: "BACKUP"}
models: {judged: {endpoint: mock}, other: {endpoint: backup}}
chains: {default: [judged, other]}
"""
_numbers = count()
Fault = Callable[[LLMock], object]


def question() -> ChatRequest:
    """A new one each time: the judge takes the same question for a retry."""
    return ChatRequest((Message("user", f"Question {next(_numbers)}?"),))


@pytest.fixture(params=["openai", "anthropic"])
def dialect(request: pytest.FixtureRequest) -> DialectName:
    name: DialectName = request.param
    return name


@pytest_asyncio.fixture
async def plane(llmock: LLMock, dialect: DialectName) -> AsyncIterator[LLMPlane]:
    nobody = Redis(port=1, socket_connect_timeout=0.2)
    async with Provider("backup") as backup:
        text = FILE.replace("MOCK", llmock.base_url(dialect)).replace("BACKUP", backup.base_url)
        configured = read_text(text.replace("DIALECT", dialect), source="llm.yaml", environment={})
        plane = open_plane(configured, store=MemoryStore(), redis=nobody)
        yield plane
        await plane.aclose()
    await nobody.aclose()


async def chat(plane: LLMPlane) -> ChatReply:
    return await GuardedChat(plane, CallContext()).chat(question())


FAULTS: dict[str, tuple[Fault, str, int]] = {
    "500": (lambda mock: mock.fail(500, times=9), "L1", 2),
    "503": (lambda mock: mock.fail(503, times=9), "L1", 2),
    "529 once": (lambda mock: mock.fail(529, times=1), "L0", 2),
    "a key that is refused": (lambda mock: mock.fail(401, times=9), "L1", 1),
    "429 for half a minute": (lambda mock: mock.rate_limit(times=9, retry_after=30.0), "L1", 1),
    "429 for a moment": (lambda mock: mock.rate_limit(times=1, retry_after=0.3), "L0", 2),
    "a stream that is cut once": (lambda mock: mock.truncate(after_chunks=2), "L0", 2),
    "a stream that hangs up once": (lambda mock: mock.disconnect(after_chunks=2), "L0", 2),
    "a stream that stalls": (lambda mock: mock.stall(after_chunks=2), "L1", 1),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_the_plane_meets_a_fault_with_patience_and_then_with_its_backup(
    llmock: LLMock, plane: LLMPlane, name: str
) -> None:
    fault, level, requests = FAULTS[name]
    fault(llmock)
    reply = await chat(plane)
    assert (reply.level, len(llmock.requests)) == (level, requests), reply.reasons
    assert reply.endpoint == ("mock" if level == "L0" else "backup") and reply.finish_reason == "stop"
    llmock.assert_resilient()


@pytest.mark.parametrize("name", ["a key that is refused", "429 for half a minute"])
async def test_the_plane_does_not_ask_again_where_it_was_told_to_stay_away(
    llmock: LLMock, plane: LLMPlane, name: str
) -> None:
    FAULTS[name][0](llmock)
    assert {(await chat(plane)).level for _ in range(10)} == {"L1"}
    assert len(llmock.requests) == 1
    llmock.assert_resilient()
