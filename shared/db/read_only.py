"""What a read-only unit of work must not send: recognised in the statement's text, before any server sees it.

What hides in a function's body cannot be seen here: a server in a read-only transaction refuses it.
"""

import re
from functools import lru_cache

from shared.errors import ReadOnlyUnit

WRITES = re.compile(
    r"""\b(?:
        insert\s+into | update\s+[^;]+?\bset\b | delete\s+from | merge\s+into
      | for\s+(?:no\s+key\s+)?update | for\s+(?:key\s+)?share
      | (?:nextval|setval|pg_notify|pg_(?:try_)?advisory_\w+|lo_(?:create|unlink|put|import|from_bytea))\s*\(
    )
    | (?:^|;)\s*(?:
        (?:create|alter|drop|truncate|comment|grant|revoke|vacuum|reindex|cluster|refresh|import|lock|listen|notify)\b
      | prepare\s+transaction | copy\b[^;]*\bfrom\b | (?:set|begin|start)\b[^;]*read(?:\s+write|_only)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/", re.DOTALL)


@lru_cache(maxsize=4096)
def write_in(statement: str) -> str | None:
    """The first words of a statement that write or lock, None where there are none. Quoted text is not looked at."""
    if WRITES.search(statement) is None:
        return None
    found = WRITES.search(QUOTED.sub("''", statement))
    return None if found is None else " ".join(found.group().split())[:60]


def refuse_writes(statement: str) -> None:
    """Raises: ReadOnlyUnit when the statement writes, locks rows, or takes an advisory lock."""
    words = write_in(statement)
    if words is not None:
        raise ReadOnlyUnit(f"a read-only unit of work cannot do {words!r}: open it with mode='rw'", words=words)
