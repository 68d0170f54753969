"""What users of LLM gateways complain about most, as tests of ours over real sockets.

Each test names the complaint. Those about chains, cooldowns, caches and budgets are where the chain is tested; these
are about one endpoint: its streams, its time limits, and what is made of its failures. Half of the providers are
llmock's, which also judges what its client did; the other half does what llmock cannot.
"""

import asyncio
import gc
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import count
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from llmock.pytest_plugin import LLMock

from shared.errors import FleetError, LLMRateLimited, LLMTimeout, LLMUnavailable, RetryLater
from shared.llm.adapters import DialectName, open_adapter
from shared.llm.call_context import CallContext
from shared.llm.classify import Outcome, classify
from shared.llm.config_file import read_text
from shared.llm.guarded import GuardedChat
from shared.llm.knobs import LLMKnobs
from shared.llm.messages import ChatReply, ChatRequest, Message
from shared.llm.openai_dialect import ChunkFold
from shared.llm.plane import LLMPlane, open_adapters
from shared.llm.port import Adapter
from shared.llm.rules import key_rules
from shared.llm.sse import EventReader
from shared.llm.timeouts import Pace
from shared.llm.wire import Call
from shared.resilience.deadline import within
from shared.resilience.gate import Gate
from shared.resilience.knobs import RetryKnobs
from shared.resilience.memory_store import MemoryStore
from shared.resilience.retry import Again, retried
from tests.fakes.chat_server import ChatServer, Fault, drips, http, says, sends, stays_silent
from tests.fakes.odd_provider import COMMENT, DONE, chunk, dribbles_headers, event, repeats, resets, streams, told

BOTH: tuple[DialectName, ...] = ("openai", "anthropic")
QUICK = RetryKnobs(retries=3, first_wait_s=0.02, suspend_after_s=5.0)
HALF = [event(chunk("Half an ")), event(chunk("answer"))]
_numbers = count()


def knobs(base_url: str, *, streamed: bool = True, **limits: Any) -> LLMKnobs:
    """Limits that an endpoint which answers keeps on a busy machine; a test that waits for one has it shorter."""
    patient: dict[str, Any] = {"first_token_timeout_s": 20.0, "idle_timeout_s": 2.0, "total_timeout_s": 60.0}
    return LLMKnobs(base_url=base_url, stream_answers=streamed, **{**patient, **limits})


def question(timeout_s: float | None = None) -> ChatRequest:
    """A new one each time: the judge takes the same question for a retry."""
    return ChatRequest((Message("user", f"Question {next(_numbers)}?"),), timeout_s=timeout_s)


def judge(error: BaseException) -> Again:
    outcome = classify(error)
    return Again(outcome.retry_here, outcome.retry_after_s, outcome.reason)


async def asked(chat: Adapter, request: ChatRequest | None = None) -> ChatReply:
    """As the plane asks: every failure is classified, and tried again here if that is what it means."""
    one = request or question()
    return await retried(lambda attempt: chat.chat(one), judge=judge, knobs=QUICK)


async def outcome_of(chat: Adapter, request: ChatRequest | None = None) -> Outcome:
    with pytest.raises(FleetError) as caught:
        await chat.chat(request or question())
    return classify(caught.value)


Open = Callable[..., Adapter]


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    adapters: list[Adapter] = []

    def one(base_url: str, *, dialect: DialectName = "openai", streamed: bool = True, **limits: Any) -> Adapter:
        adapters.append(open_adapter(knobs(base_url, streamed=streamed, **limits), dialect=dialect))
        return adapters[-1]

    yield one
    for adapter in adapters:
        await adapter.aclose()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


def test_complaint_01_a_gateway_library_brings_its_supply_chain_into_every_process() -> None:
    code = (
        "import socket, sys; socket.socket.connect = lambda *_: sys.exit('opened a connection');"
        "import shared.llm.adapters, shared.llm.openai_chat;"
        "print(sorted({'litellm', 'anthropic', 'langchain', 'requests', 'tiktoken'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize("fault", ["disconnect", "truncate", "corrupt", "stall"])
async def test_complaint_02_a_stream_that_is_cut_stalled_or_malformed_is_asked_again(
    llmock: LLMock, opened: Open, fault: str, dialect: DialectName
) -> None:
    getattr(llmock, fault)(after_chunks=2)
    reply = await asked(opened(llmock.base_url(dialect), dialect=dialect))
    assert reply.text and reply.finish_reason == "stop"
    assert len(llmock.requests) == 2
    llmock.assert_resilient()


async def test_complaint_03_a_429_in_the_middle_of_a_stream_is_a_wait_and_no_loop(
    server: ChatServer, opened: Open
) -> None:
    server.script.append(streams([*HALF, event({"error": {"code": 429, "message": "slow down"}}), DONE]))
    outcome = await outcome_of(opened(server.base_url))
    cpu_s = time.thread_time()
    await asyncio.sleep(0.5)
    assert (outcome.kind, outcome.learn, outcome.slows) == ("rate_limited", "neutral", True)
    assert len(server.requests) == 1
    assert time.thread_time() - cpu_s < 0.4, "nothing goes round in this loop"


async def test_complaint_04_overloaded_in_a_stream_is_a_failure_of_the_endpoint(
    server: ChatServer, opened: Open
) -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    server.script.append(streams([event(overloaded, name="error")]))
    server.script.append(streams([*HALF, event(overloaded)]))
    for dialect in ("anthropic", "openai"):
        outcome = await outcome_of(opened(server.base_url, dialect=dialect))
        assert (outcome.kind, outcome.learn, outcome.next) == ("overloaded", "failure", "retry")


FOREVER = {
    "silence": lambda: stays_silent(),
    "headers that dribble": lambda: dribbles_headers(every_s=0.01),
    "a body that dribbles": lambda: drips(http(200, b'{"id": "' + b"x" * 5000), every_s=0.01),
    "comments": lambda: repeats(COMMENT, every_s=0.01),
    "tokens without end": lambda: repeats(event(chunk("x")), every_s=0.01),
}


@pytest.mark.parametrize("name", FOREVER)
@pytest.mark.parametrize("streamed", [True, False])
async def test_complaint_06_a_time_limit_holds_whatever_the_endpoint_does(
    server: ChatServer, opened: Open, name: str, streamed: bool
) -> None:
    """Of all limits only the question's own can end this one."""
    server.script.append(FOREVER[name]())
    hour = dict.fromkeys(("first_token_timeout_s", "idle_timeout_s", "total_timeout_s"), 3600.0)
    chat = opened(server.base_url, streamed=streamed, **hour)
    async with asyncio.timeout(60):
        with pytest.raises(LLMTimeout):
            await chat.chat(question(timeout_s=0.25))


async def test_complaint_10_failing_calls_leave_nothing_behind(server: ChatServer, opened: Open) -> None:
    kinds = (Call, Pace, ChunkFold, EventReader, LLMUnavailable, ChatReply, httpx2.Request, httpx2.Response)

    def alive() -> Counter[str]:
        gc.collect()
        return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))

    before = alive()  # what other tests keep
    chat = opened(server.base_url)
    faults = [streams(HALF), streams(HALF, end="reset"), streams([*HALF, event("{oops")]), resets(), streams(told("x"))]
    server.script += faults * 40
    ended: list[ChatReply | BaseException] = []
    for _ in range(40):
        ended += await asyncio.gather(*[chat.chat(question()) for _ in faults], return_exceptions=True)
    assert {type(one) for one in ended} >= {LLMUnavailable, ChatReply}
    ended.clear()
    left = alive() - before
    assert max(left.values(), default=0) <= len(faults), f"more than the last five of 200 calls: {left}"


@pytest.mark.parametrize("end", ["clean", "hang up", "reset"])
@pytest.mark.parametrize("goodbye", [[], [DONE]])
async def test_complaint_12_half_an_answer_is_never_a_clean_200(
    server: ChatServer, opened: Open, end: str, goodbye: list[bytes]
) -> None:
    server.script.append(streams([*HALF, *goodbye], end=end))  # type: ignore[arg-type]
    assert (await outcome_of(opened(server.base_url))).kind == "invalid_answer"


async def test_complaint_13_the_wait_for_headers_is_under_the_limit_too(server: ChatServer, opened: Open) -> None:
    server.script += [stays_silent(), dribbles_headers(every_s=0.01)]
    chat = opened(server.base_url, first_token_timeout_s=0.4)
    for _ in range(2):
        with pytest.raises(LLMTimeout, match="first_token"):
            await chat.chat(question())


async def test_complaint_14_an_error_after_the_first_token_is_an_error_and_says_what_was_shown(
    server: ChatServer, opened: Open
) -> None:
    server.script.append(streams([*HALF, event({"error": {"message": "upstream lost"}})]))
    pieces: list[str] = []

    async def read() -> None:
        async with aclosing(opened(server.base_url).stream(question())) as items:
            async for item in items:
                assert isinstance(item, str), "half an answer is no reply"
                pieces.append(item)

    with pytest.raises(LLMUnavailable) as caught:
        await read()
    outcome = classify(caught.value)
    assert (outcome.next, outcome.learn) == ("retry", "failure")
    assert caught.value.context["written"] == len("".join(pieces)) == len("Half an answer")


async def test_complaint_15_a_stream_that_is_alive_but_too_slow_is_given_up(server: ChatServer) -> None:
    server.script.append(repeats(event(chunk("x")), every_s=0.12))
    slow = LLMKnobs(base_url=server.base_url, stream_answers=True, min_tokens_per_s=20, throughput_window_s=0.5)
    chat = open_adapter(slow)
    with pytest.raises(LLMTimeout, match="throughput"):
        await chat.chat(question())
    await chat.aclose()


@pytest.mark.parametrize(
    ("broken", "requests"),
    [
        ([streams(HALF)], 2),
        ([streams([*HALF, event("{oops")])], 2),
        ([resets(), resets(), resets()], 4),
        ([resets(), streams(HALF)], 2),
    ],
)
async def test_complaint_16_no_state_is_left_over_between_attempts(
    server: ChatServer, broken: list[Fault], requests: int
) -> None:
    """What the plane itself makes of them: a broken answer is tried once more, a broken connection three times."""
    server.script += [*broken, streams(told("whole"))]
    text = f"""\
version: 1
endpoints: {{only: {{base_url: "{server.base_url}", stream_answers: true, retry: {{base_s: 0.02}}}}}}
models: {{m: {{endpoint: only}}}}
chains: {{default: [m]}}
"""
    configured = read_text(text, source="llm.yaml", environment={})
    gate = Gate(MemoryStore(), key_rules(configured.config))
    plane = LLMPlane(configured, gate=gate, adapters=open_adapters(configured))
    reply = await GuardedChat(plane, CallContext()).chat(question())
    if requests == 2 and len(broken) == 2:
        assert reply.level == "L4", "the second of two failures was a broken answer: there is no third try"
    else:
        assert (reply.text, reply.level) == ("whole", "L0"), "nothing of the earlier halves"
    assert len(server.requests) == requests
    assert all(request == server.requests[0] for request in server.requests)
    await plane.aclose()


@pytest.mark.parametrize("streamed", [True, False])
async def test_complaint_18_time_limits_do_not_multiply_by_retries(
    server: ChatServer, opened: Open, streamed: bool
) -> None:
    server.script += [stays_silent() for _ in range(9)]
    chat = opened(server.base_url, streamed=streamed, first_token_timeout_s=0.4)
    with within(0.6), pytest.raises(FleetError):
        await asked(chat)
    assert len(server.requests) <= 2, "nobody behind the port retries"


async def test_complaint_19_a_connection_that_fails_and_an_empty_stream_are_failures_to_go_on_from(
    server: ChatServer, opened: Open
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server.script += [streams([]), streams([DONE]), sends(b"", hang_up=True), resets()]
    outcomes = [await outcome_of(opened(f"http://127.0.0.1:{port}/v1"))]
    chat = opened(server.base_url)
    outcomes += [await outcome_of(chat) for _ in range(4)]
    assert [one.kind for one in outcomes] == [
        "unreachable", "invalid_answer", "invalid_answer", "unreachable", "unreachable",
    ]  # fmt: skip
    assert {(one.learn, one.next) for one in outcomes} == {("failure", "retry")}


@pytest.mark.parametrize("dialect", BOTH)
async def test_complaint_20_a_429_is_a_wait_of_the_length_it_names(
    llmock: LLMock, opened: Open, dialect: DialectName
) -> None:
    llmock.rate_limit(times=2, retry_after=0.3)
    assert (await asked(opened(llmock.base_url(dialect), dialect=dialect))).text
    assert len(llmock.requests) == 3
    llmock.assert_resilient(strict=True)


async def test_complaint_20_a_429_that_names_a_long_wait_holds_no_slot(llmock: LLMock, opened: Open) -> None:
    llmock.rate_limit(times=1, retry_after=30.0)
    with pytest.raises(RetryLater) as caught:
        await asked(opened(llmock.base_url("openai")))
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 30.0
    assert isinstance(caught.value.__cause__, LLMRateLimited)
    assert len(llmock.requests) == 1


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_llmocks_verdict_on_servers_that_fail_is_that_we_retry_with_patience(
    llmock: LLMock, opened: Open, status: int, dialect: DialectName
) -> None:
    llmock.fail(status, times=2)
    assert (await asked(opened(llmock.base_url(dialect), dialect=dialect, streamed=False))).text
    assert len(llmock.requests) == 3
    llmock.assert_resilient()


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_llmocks_verdict_on_refusals_is_that_we_ask_once(
    llmock: LLMock, opened: Open, status: int, dialect: DialectName
) -> None:
    llmock.fail(status, times=5)
    with pytest.raises(FleetError):
        await asked(opened(llmock.base_url(dialect), dialect=dialect))
    assert len(llmock.requests) == 1
    llmock.assert_resilient()


async def test_llmocks_limits_are_seen_by_their_true_numbers(llmock: LLMock) -> None:
    llmock.limits(rpm=50)
    left: list[float | None] = []
    chat = open_adapter(knobs(llmock.base_url("openai")), on_limits=lambda seen: left.append(seen.requests_left))
    await chat.chat(question())
    await chat.chat(question())
    assert left == [49.0, 48.0]
    await chat.aclose()


async def test_says_is_an_answer_to_whoever_asked_for_a_stream(server: ChatServer, opened: Open) -> None:
    server.script.append(says({"error": {"message": "no streaming here", "code": 400}}))
    assert (await outcome_of(opened(server.base_url))).kind == "bad_request"
