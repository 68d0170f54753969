"""What a reading session of a thread refuses by itself, and what does not go together in a unit of work."""

from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.db.decide import Wish
from shared.db.sessions import SyncReadSession, SyncWriteSession
from shared.errors import ReadOnlyUnit


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_a_reading_session_stores_nothing_and_asks_no_server() -> None:
    with SyncReadSession() as session:  # bound to nothing: a statement would fail otherwise
        session.flush()
        session.add(Note(id=1))
        with pytest.raises(ReadOnlyUnit, match="cannot store Note: open it with mode='rw'"):
            session.flush()


def test_neither_kind_of_session_is_the_other() -> None:
    assert not issubclass(SyncReadSession, SyncWriteSession)
    assert not issubclass(SyncWriteSession, SyncReadSession)


@pytest.mark.parametrize(
    ("mode", "consistency", "max_staleness_s"),
    [("rw", "causal", None), ("rw", "bounded", 1.0), ("ro", "bounded", None), ("ro", "causal", 1.0)],
)
def test_wishes_that_contradict_themselves_are_mistakes(mode: Any, consistency: Any, max_staleness_s: Any) -> None:
    with pytest.raises(TypeError, match="max_staleness_s belongs to consistency='bounded'"):
        Wish.checked(mode, consistency, max_staleness_s)
