"""What the folder of a stopped primary says about its last record."""

import pytest

from workers.ops.replication.yielding import last_lsn_in

TOLD = """\
pg_control version number:            1300
Database cluster state:               {state}
pg_control last modified:             Tue 24 Nov 2026 03:48:36 AM UTC
Latest checkpoint location:           {place}
Latest checkpoint's REDO location:    0/402AE28
"""


def test_an_orderly_stop_tells_where_its_last_record_begins() -> None:
    assert last_lsn_in(TOLD.format(state="shut down", place="2/402AE28")) == (2 << 32) + 0x402AE28


@pytest.mark.parametrize("state", ["in production", "shut down in recovery", "in archive recovery", "shutting down"])
def test_any_other_end_tells_nothing(state: str) -> None:
    assert last_lsn_in(TOLD.format(state=state, place="0/402AE28")) is None


def test_a_folder_without_a_control_file_tells_nothing() -> None:
    assert last_lsn_in("") is None
