"""Options of the command line: read strictly, refused with the right form."""

import pytest

from shared.errors import Misconfigured
from workers.ops.commands import pinned_ports


def test_pins_are_read_as_name_and_port() -> None:
    assert pinned_ports(["flower=5555", "redis=6390"]) == {"flower": 5555, "redis": 6390}


@pytest.mark.parametrize("pin", ["flower", "flower=", "=5555", "flower=x", "flower=0", "flower=65536", "flower=-1"])
def test_a_wrong_pin_is_refused_with_the_right_form(pin: str) -> None:
    with pytest.raises(Misconfigured, match="--port flower=5555"):
        pinned_ports([pin])
