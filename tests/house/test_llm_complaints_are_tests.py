"""The twenty most common complaints about LLM gateways: each is a named test."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
COMPLAINTS = 20


def test_each_of_the_twenty_complaints_is_a_test_of_its_number() -> None:
    found = {
        int(number)
        for path in TESTS.rglob("test_*.py")
        for number in re.findall(r"^(?:async )?def test_complaint_(\d\d)_", path.read_text("utf-8"), re.MULTILINE)
    }
    assert found == set(range(1, COMPLAINTS + 1))
