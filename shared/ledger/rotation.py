"""Rotation: what is sealed under an older master key is put under the active one, page by page, beside a running fleet.

Only key ids and wrapped data keys travel; the sealed data stays in the server and is never opened. A page is one short
transaction that takes only rows nobody else has locked, and writes only values that are still what was read: a worker
waits for a page at the longest, and never in a deadlock. What the page left is for the next pass.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import Row, text

from shared.db.database import Database
from shared.errors import FleetError, Misconfigured
from shared.ledger.vault import SEALED, VERSION, Vault

log = structlog.get_logger()

PAGE_ROWS = 100
"""The server needs about 4 ms to look through a value of 100 KB and 8 ms to re-wrap it; a page is one statement."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """One column with sealed values.

    Attributes:
        inside: The field of it that is sealed, where it is not the whole.
        is_text: Whether it is text, of which some is a sealed value's JSON.
    """

    table: str
    column: str
    keys: tuple[tuple[str, str], ...]
    inside: str | None = None
    is_text: bool = False
    page_rows_divisor: int = 1

    @property
    def name(self) -> str:
        """As an operator reads it."""
        return f"{self.table}.{self.column}"

    @property
    def sealed_part(self) -> str:
        """SQL for the value that is sealed."""
        if self.is_text:
            return f"CASE WHEN t.{self.column} ~ '{SEALED_TEXT}' THEN CAST(t.{self.column} AS json) END"
        return f"t.{self.column}" + (f" -> '{self.inside}'" if self.inside else "")

    def columns(self, prefix: str = "") -> str:
        """SQL for the primary key."""
        return ", ".join(prefix + name for name, _ in self.keys)


TASK_KEY = (("id", "uuid"),)
_FIELDS = " ?, ?".join(f'"{name}" ?: ?{value}' for name, value in (
    ("v", "[0-9]+"), ("kid", r'"[\w.-]+"'), ("key", r'"[\w+/=]+"'), ("data", r'"[\w+/=]+"')
))  # fmt: skip
SEALED_TEXT = rf'^\{{"\$sealed" ?: ?\{{{_FIELDS}\}}\}}$'
"""Nothing else that people write is taken for JSON: one cast that fails would end the walk."""
STEP_KEY = (("task_id", "uuid"), ("name", "text"), ("ordinal", "int"))
SHELVES = (
    Shelf("tasks", "input", TASK_KEY, inside="kwargs"),
    Shelf("tasks", "output", TASK_KEY),
    Shelf("steps", "result", STEP_KEY),
    Shelf("signals", "payload", (("id", "bigint"),)),
    Shelf("messages", "content", (("id", "bigint"),), is_text=True),
    Shelf("schedules", "input", (("name", "text"),), inside="kwargs"),
    Shelf("blobs", "data", STEP_KEY, page_rows_divisor=10),  # large values: the server reads through each
)


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where a rotation stands: everything up to this primary key of this shelf is done. JSON-safe fields."""

    shelf: str
    after: tuple[str | int, ...]


@dataclass(slots=True)
class Progress:
    """What a rotation has done so far; `bookmark` is where another one can go on."""

    bookmark: Bookmark | None = None
    read: int = 0
    rewrapped: int = 0
    current: int = 0
    """Under the active key before."""
    plain: int = 0
    """Not sealed: of a time without keys."""
    left: int = 0
    """Locked or changed by a worker meanwhile: the next pass finds them."""
    unreadable: int = 0
    """Under a key that is not known here, or altered."""
    still_under: Counter[str] = field(default_factory=Counter)
    """Values by the older key that they are still under; a key that is not here may be given up."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left under an older key, among the rows that this pass has seen."""
        return self.left == 0 and self.unreadable == 0


async def rotate(
    database: Database,
    vault: Vault,
    *,
    since: Bookmark | None = None,
    page_rows: int = PAGE_ROWS,
    on_page: Callable[[Progress], None] = lambda _progress: None,
) -> Progress:
    """Walk every shelf once, re-wrapping what is under an older key.

    Run it when every process has the new key first; repeat it until a pass is complete; then give the old key up.

    Args:
        since: Go on after an earlier pass that was cut off; without it a new pass skips what is done already, too.
        page_rows: Rows that are read, and locked, together.
        on_page: Told after each page that is committed.

    Raises: Misconfigured when there is no key; DatabaseUnavailable (what was told to `on_page` is done).
    """
    if vault.active_key_id is None:
        raise Misconfigured(
            "FLEET_LEDGER_KEYS is empty: there is no key to rotate to; make one with `fleet keys new`",
            variable="FLEET_LEDGER_KEYS",
        )
    names = [shelf.name for shelf in SHELVES]
    first = names.index(since.shelf) if since else 0
    progress = Progress(since)
    for shelf in SHELVES[first:]:
        after = since.after if since and since.shelf == shelf.name else None
        limit = max(1, page_rows // shelf.page_rows_divisor)
        while page := await _read(database, shelf, after=after, limit=limit):
            changes = _judge(page, vault, shelf, progress)
            taken = await _write(database, shelf, list(changes.values())) if changes else set()
            for key, change in changes.items():
                if key not in taken:
                    progress.left += 1
                    progress.still_under[change["old_kid"]] += 1
            progress.rewrapped += len(taken)
            after = _key_of(page[-1], shelf)
            progress.bookmark = Bookmark(shelf.name, after)
            on_page(progress)
    return progress


def _judge(page: Sequence[Row[Any]], vault: Vault, shelf: Shelf, progress: Progress) -> dict[Any, dict[str, Any]]:
    """What a page's rows need; counts those that need nothing."""
    changes: dict[Any, dict[str, Any]] = {}
    for row in page:
        progress.read += row.is_present
        if not row.is_sealed:
            progress.plain += row.is_present
            continue
        if row.kid == vault.active_key_id:
            progress.current += 1
            continue
        shown = {"v": row.version, "kid": row.kid, "key": row.wrapped, "data": ""}
        try:
            rewrapped = vault.rewrap({SEALED: shown if row.fields == len(shown) else None})[SEALED]
        except FleetError as error:
            progress.unreadable += 1
            progress.still_under[str(row.kid)] += 1
            log.warning("rotation.unreadable", shelf=shelf.name, key=_key_of(row, shelf), cause=error.message)
            continue
        key = _key_of(row, shelf)
        columns = dict(zip((name for name, _ in shelf.keys), key, strict=True))
        fresh = {"old_kid": row.kid, "old": row.wrapped, "kid": rewrapped["kid"], "wrapped": rewrapped["key"]}
        changes[key] = {**columns, **fresh}
    return changes


async def _read(
    database: Database, shelf: Shelf, *, after: tuple[str | int, ...] | None, limit: int
) -> Sequence[Row[Any]]:
    where = ""
    if after is not None:
        bounds = ", ".join(f"CAST(:after{n} AS {kind})" for n, (_, kind) in enumerate(shelf.keys))
        where = f"WHERE ({shelf.columns('t.')}) > ({bounds})"
    query = f"""
        SELECT {shelf.columns("page.")}, is_present, envelope IS NOT NULL AS is_sealed, fields, kid, key AS wrapped,
               CASE WHEN v ~ '^[0-9]{{1,6}}$' THEN CAST(v AS int) END AS version
        FROM (SELECT {shelf.columns("t.")}, t.{shelf.column} IS NOT NULL AS is_present, {shelf.sealed_part} AS part
              FROM {shelf.table} t {where} ORDER BY {shelf.columns("t.")} LIMIT :limit) page
        CROSS JOIN LATERAL (
            SELECT CASE WHEN json_typeof(part) = 'object' THEN
                       CASE WHEN ARRAY(SELECT json_object_keys(part)) = ARRAY['{SEALED}']
                            THEN part -> '{SEALED}' END END AS envelope
            OFFSET 0) outside  -- else the planner repeats this, and reads the whole value, at every mention of it
        CROSS JOIN LATERAL (
            SELECT CASE WHEN json_typeof(envelope) = 'object' THEN envelope END AS object OFFSET 0) inside
        LEFT JOIN LATERAL json_to_record(object) AS e(v text, kid text, key text) ON true
        CROSS JOIN LATERAL (SELECT count(*) AS fields FROM json_object_keys(object)) names
        ORDER BY {shelf.columns("page.")}"""
    bound = {f"after{n}": value for n, value in enumerate(after or ())}
    async with database.unit() as unit:  # never a replica: what it has not heard of yet would be left behind
        return (await unit.execute(text(query), {**bound, "limit": limit})).all()


async def _write(database: Database, shelf: Shelf, changes: list[dict[str, Any]]) -> set[Any]:
    """Put the new wraps in place.

    Returns: The keys of the rows that took theirs; the others were locked, or hold another value by now.
    """
    kinds = ", ".join(f"{name} {kind}" for name, kind in shelf.keys)
    same = " AND ".join(f"t.{name} = x.{name}" for name, _ in shelf.keys)
    part = f"({shelf.sealed_part}) -> '{SEALED}'"
    sealed = f"""json_build_object('{SEALED}', json_build_object(
        'v', {VERSION}, 'kid', x.kid, 'key', x.wrapped, 'data', {part} -> 'data'))"""
    if shelf.inside:
        sealed = f"json_build_object('args', t.{shelf.column} -> 'args', '{shelf.inside}', {sealed})"
    if shelf.is_text:
        sealed = f"CAST({sealed} AS text)"
    statement = f"""
        WITH x AS MATERIALIZED (SELECT * FROM json_to_recordset(CAST(:changes AS json))
                                AS x({kinds}, old text, kid text, wrapped text)),
             mine AS MATERIALIZED (SELECT {shelf.columns("t.")} FROM {shelf.table} t JOIN x ON {same}
                                   FOR NO KEY UPDATE OF t SKIP LOCKED)
        UPDATE {shelf.table} t SET {shelf.column} = {sealed}
        FROM x JOIN mine USING ({shelf.columns()})
        WHERE {same} AND {part} ->> 'key' = x.old
        RETURNING {shelf.columns("t.")}"""
    rows = json.dumps(changes)
    async with database.unit() as unit:
        return {_key_of(row, shelf) for row in await unit.execute(text(statement), {"changes": rows})}


def _key_of(row: Row[Any], shelf: Shelf) -> tuple[str | int, ...]:
    values = (getattr(row, name) for name, _ in shelf.keys)
    return tuple(value if isinstance(value, int) else str(value) for value in values)
