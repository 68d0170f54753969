"""`fleet db move-bucket`: which buckets a word means, and what is said of each."""

import pytest

from shared.errors import BadInput
from shared.ledger.moving import Done
from workers.ops.shard_commands import _buckets, _sentence


@pytest.mark.parametrize(("word", "found"), [("0", [0]), ("1023", [1023]), ("5-7", [5, 6, 7]), ("7-7", [7])])
def test_a_bucket_or_a_range_of_them(word: str, found: list[int]) -> None:
    assert list(_buckets(word)) == found


@pytest.mark.parametrize("word", ["", "x", "-1", "1024", "7-5", "0-1024", "1-2-3", "1.5"])
def test_what_is_no_bucket_is_refused(word: str) -> None:
    with pytest.raises(BadInput, match="is no bucket: write a number from 0 to 1023, or a range such as 512-1023"):
        _buckets(word)


def test_each_end_of_a_move_has_its_sentence() -> None:
    assert _sentence(7, "second", None) == "Bucket 7 is on second already."
    assert _sentence(7, "second", Done("second", "second", {})).endswith("what was left of its move is done.")
    moved = Done("main", "second", {"tasks": 2, "steps": 0, "messages": 3})
    assert _sentence(7, "second", moved) == "Bucket 7 has moved from main to second: 2 tasks, 3 messages."
    empty = Done("main", "second", {"tasks": 0})
    assert _sentence(7, "second", empty) == "Bucket 7 has moved from main to second: it was empty."
