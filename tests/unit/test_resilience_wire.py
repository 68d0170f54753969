"""What Redis answers, cut into replies however it arrives."""

import pytest
from redis.exceptions import ConnectionError as LineLost
from redis.exceptions import NoScriptError, ResponseError

from shared.resilience.wire import replies_in

WHOLE = b"$5\r\na\r\nbc\r\n$0\r\n\r\n-NOSCRIPT No matching script\r\n-ERR no\r\n$1\r\nz\r\n"


@pytest.mark.parametrize("step", range(1, len(WHOLE) + 1))
def test_replies_are_the_same_in_whatever_pieces_they_come(step: int) -> None:
    replies: list[bytes | Exception] = []
    rest = b""
    for at in range(0, len(WHOLE), step):
        heard, rest = replies_in(rest + WHOLE[at : at + step])
        replies += heard
    assert rest == b""
    assert [type(one) for one in replies] == [bytes, bytes, NoScriptError, ResponseError, bytes]
    assert [one for one in replies if isinstance(one, bytes)] == [b"a\r\nbc", b"", b"z"]


@pytest.mark.parametrize("strange", [b"$-1\r\n", b":1\r\n", b">2\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"$x\r\n"])
def test_what_no_script_answers_is_refused(strange: bytes) -> None:
    with pytest.raises(ValueError, match=r"string|invalid literal"):
        replies_in(b"$1\r\na\r\n" + strange)


def test_an_error_of_the_whole_connection_is_the_last_and_takes_no_reply_with_it() -> None:
    replies, rest = replies_in(b"$1\r\na\r\n-LOADING Redis is loading the dataset in memory\r\n$1\r\nb\r\n")
    assert (replies[0], len(replies), rest) == (b"a", 2, b"")
    assert isinstance(replies[1], LineLost)
