"""Events out of bytes: the same ones, however the network cuts the stream."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm import sse
from shared.llm.sse import Event, EventReader, EventTooLong

STREAM = (
    ": comment\n\n"
    "event: message_start\r\ndata: {1}\r\n\r\n"
    "id: 7\ndata:no blank\n\n"
    "\n\n"
    "data: two\ndata: lines ☂\n\n"
    "event: alone\n\n"
    "retry: 5\rdata: mac\r\r"
    "data: [DONE]\n\n"
).encode()
EVENTS = [
    Event("message_start", "{1}"),
    Event("", "no blank"),
    Event("", "two\nlines ☂"),
    Event("", "mac"),
    Event("", "[DONE]"),
]


def read(blocks: list[bytes]) -> list[Event]:
    reader = EventReader()
    return [event for block in blocks for event in reader.feed(block)] + reader.end()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_the_same_events_come_out_however_the_stream_is_cut(places: list[int]) -> None:
    assert read(cut(STREAM, places)) == EVENTS


def test_byte_by_byte_is_a_cut_too() -> None:
    assert read([STREAM[place : place + 1] for place in range(len(STREAM))]) == EVENTS


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_are_read_without_an_error_and_cuts_do_not_matter(stream: bytes, places: list[int]) -> None:
    assert read(cut(stream, places)) == read([stream])


def test_the_end_of_the_stream_ends_the_last_event() -> None:
    assert read([b"data: x"]) == [Event("", "x")]
    assert read([b"data: x\r"]) == [Event("", "x")]


def test_an_event_comes_out_with_the_bytes_that_complete_it() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n\ndata: b\n") == [Event("", "a")]
    assert reader.feed(b"\n") == [Event("", "b")]


def test_an_event_without_an_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    with pytest.raises(EventTooLong):
        read([b"data: " + b"x" * 50 + b"\n"] * 100)
    with pytest.raises(EventTooLong):
        read([b"x" * 50] * 100)
