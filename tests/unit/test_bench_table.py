"""The README's table of figures: rewritten between its markers, honest about goals that are not met."""

import json

import pytest

from tests.bench.figures import Figure, percentile
from tests.bench.readme import END, START, rewritten, table

SLOW = Figure(
    name="latency.p50", what="submit → start", value=14.94, unit="ms", goal=6.0, better="lower", peer="celery-safe",
    peer_value=4.19,
)  # fmt: skip
FULL = Figure(name="inflight5s.ceiling", what="of the ideal", value=98.2, unit="%", goal=97.0, better="higher")


def test_a_figure_is_one_line_of_json_with_its_peer() -> None:
    assert json.loads(SLOW.line()) == {
        "name": "latency.p50", "value": 14.9, "unit": "ms", "goal": 6.0, "peer": "celery-safe", "peer_value": 4.19,
        "ratio": 3.57,
    }  # fmt: skip


def test_a_figure_without_a_peer_has_no_ratio() -> None:
    assert json.loads(FULL.line())["ratio"] is None


def test_the_table_says_which_goal_is_not_met() -> None:
    missed, met = table([SLOW, FULL]).splitlines()[2:]
    assert "≤ 6 ms: **not met**" in missed
    assert "≥ 97 %: met" in met


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert rewritten(text, [FULL]) == f"before\n{START}\n{table([FULL])}\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["no markers", f"{START} without an end", f"{END} without a start"])
def test_a_readme_without_a_place_for_the_table_is_left_alone(text: str) -> None:
    assert rewritten(text, [FULL]) is None


def test_a_percentile_is_a_value_that_was_measured() -> None:
    samples = [float(number) for number in range(1, 101)]
    assert [percentile(samples, percent) for percent in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
