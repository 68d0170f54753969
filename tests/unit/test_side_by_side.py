"""The suite's two processes: what one runs, the other leaves."""

from tests.side_by_side import BESIDE, TESTS, paths


def test_each_pattern_names_something_and_nothing_is_named_twice() -> None:
    found = paths()
    assert len(found) == len(set(found))
    assert [pattern for pattern in BESIDE if not list(TESTS.glob(pattern))] == []
