"""The two kinds of session: one that writes and one that cannot, so that a type checker tells them apart."""

from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from shared.db.read_only import refuse_asynchronous, refuse_writes
from shared.errors import ReadOnlyUnit


class _OfOneUnit(AsyncSession):
    """Ends with its unit of work, and then has nothing left to say to a server, unless it was cut off."""

    async def __aexit__(self, *reason: Any) -> None:
        if self.sync_session.in_transaction():
            await super().__aexit__(*reason)
        else:
            self.sync_session.close()  # without a task and two turns of the loop


class WriteSession(_OfOneUnit):
    """A session on the primary; its block commits at the end."""


class _ReadOnly(Session):
    """Flushes nothing, by itself or when told to."""


class ReadSession(_OfOneUnit):
    """A session that reads one node, perhaps a replica; what would write raises ReadOnlyUnit."""

    sync_session_class = _ReadOnly


class SyncWriteSession(Session):
    """As WriteSession, for callers without a loop."""


class SyncReadSession(_ReadOnly):
    """As ReadSession, for callers without a loop."""


@event.listens_for(_ReadOnly, "before_flush")
def _refuse_flush(session: Session, _context: Any, _instances: Any) -> None:
    changed = next((one for kind in (session.new, session.dirty, session.deleted) for one in kind), None)
    if changed is not None:
        raise ReadOnlyUnit(f"a read-only unit of work cannot store {type(changed).__name__}: open it with mode='rw'")


def guard(engine: Any, *, always: bool) -> None:
    """Have every statement on an engine looked through before it is sent, those of read-only units for writes.

    Args:
        engine: The synchronous side of an engine.
        always: Whether all units on this engine are read-only.
    """

    def look(_cursor: Any, statement: str, _values: Any, context: Any) -> None:
        if always or context.root_connection._execution_options.get("postgresql_readonly"):
            refuse_writes(statement)
        else:
            refuse_asynchronous(statement)

    # The dialect's events: one of the engine's has every unit look for those of its beginning, end and results too.
    event.listen(engine, "do_execute", look)
    event.listen(engine, "do_executemany", look)
    event.listen(
        engine, "do_execute_no_params", lambda cursor, statement, context: look(cursor, statement, None, context)
    )
