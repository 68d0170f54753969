"""A run of many benchmarks: one that fails does not lose what the others have measured."""

from typing import cast

import pytest

from tests.bench.__main__ import measured
from tests.bench.figures import Figure
from tests.bench.site import BenchFailed, Site

HERE = cast(Site, object())
ONE = Figure(name="one", what="one", value=1.0, unit="", goal=1.0, better="lower")


def fails(_: Site) -> list[Figure]:
    raise BenchFailed("a task failed")


def test_one_benchmark_that_fails_is_named_and_the_figures_of_the_others_are_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures, failed = measured({"a": lambda _: [ONE], "b": fails, "c": lambda _: [ONE, ONE]}, HERE)
    assert (figures, failed) == ([ONE, ONE, ONE], ["b"])
    assert "bench: b failed:" in (told := capsys.readouterr().err)
    assert "BenchFailed: a task failed" in told


def test_who_stops_a_run_stops_it() -> None:
    def interrupted(_: Site) -> list[Figure]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured({"a": interrupted, "b": lambda _: [ONE]}, HERE)
