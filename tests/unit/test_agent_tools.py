"""The tools that come with the fleet: arithmetic and nothing else, however a model asks."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadInput
from workers.agents.agent import TOOLS
from workers.agents.tools import calculator, clock


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * (3 + 4)", 84),
        ("7 // 2", 3),
        ("-7 % 3", 2),
        ("1 / 4", 0.25),
        ("+-+1", -1),
        ("1e3", 1000.0),
        ("0x10", 16),
        (" 1 + 1\n", 2),
    ],
)
def test_arithmetic_is_computed(expression: str, value: float) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "2 ** 9", "9 ** 9 ** 9", "1 << 99", "1 | 2", "~1", "not 1", "True", "None", "'a' * 9", "b'a'", "1j", "...",
        "x", "__import__('os')", "().__class__", "[1]", "{1: 2}", "f'{1}'", "abs(1)", "(lambda: 1)()", "1 if 1 else 2",
        "1 < 2", "1 and 2", "[x for x in (1,)]", "(y := 1)", "1, 2", "*1", "await x", "yield",
    ],
)  # fmt: skip
def test_everything_but_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(BadInput, match=r"^expression"):
        calculator(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "1 +",
        "1 / 0",
        "1 % 0",
        "1; 2",
        "x = 1",
        "1e999",
        "1e999 - 1e999",
        "1e200 * 1e200",
        "(" * 100 + "1",
        "1\x00",
        "\ud800",
    ],
)
def test_what_cannot_be_computed_is_an_error_that_a_model_can_read(expression: str) -> None:
    with pytest.raises(BadInput, match=r"^expression"):
        calculator(expression)


def test_a_long_expression_is_refused_unread() -> None:
    with pytest.raises(BadInput, match="at most 200 characters"):
        calculator("1+" * 100 + "1")


@given(st.text(alphabet="0123456789.+-*/%() eEjxob_", max_size=200) | st.text(max_size=60))
def test_any_text_is_a_number_of_bounded_size_or_refused(expression: str) -> None:
    try:
        value = calculator(expression)
    except BadInput:
        return
    assert math.isfinite(value)
    assert not isinstance(value, int) or value.bit_length() < 1000


def test_the_clock_tells_now_in_utc() -> None:
    told = datetime.fromisoformat(clock())
    assert told.utcoffset() is not None
    assert math.isclose(told.timestamp(), datetime.now(UTC).timestamp(), abs_tol=5)


def test_a_model_is_told_what_each_tool_does_and_takes() -> None:
    assert TOOLS["calculator"].description.startswith("Compute an arithmetic expression")
    assert TOOLS["calculator"].inputs.schema()["required"] == ["expression"]
    assert TOOLS["clock"].inputs.schema()["properties"] == {}
