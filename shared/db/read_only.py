"""What a unit of work must not send, a read-only one above all: recognised in the text, before any server sees it.

What hides in a function's body cannot be seen here: a server in a read-only transaction refuses it.
"""

import re
from functools import lru_cache

from shared.errors import BadInput, ReadOnlyUnit

WRITES = re.compile(
    r"""\b(?:
        insert\s+into | update\s+[^;]+?\bset\b | delete\s+from | merge\s+into
      | for\s+(?:no\s+key\s+)?update | for\s+(?:key\s+)?share
      | (?:nextval|setval|pg_notify|pg_(?:try_)?advisory_\w+|lo_(?:create|unlink|put|import|from_bytea))\s*\(
    )
    | (?:^|;)\s*(?:
        (?:create|alter|drop|truncate|comment|grant|revoke|vacuum|analyze|reindex|cluster|refresh|import|lock)\b
      | (?:listen|notify|do|discard|reset\s+(?:all|(?:default_)?transaction_read_only))\b
      | prepare\s+transaction | copy\b[^;]*\bfrom\b | (?:set|begin|start)\b[^;]*read(?:\s+write|_only)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
UNLOCKS = re.compile(r"\bset_config\s*\(\s*'(?:default_)?transaction_read_only", re.IGNORECASE)
"""A call whose first word is quoted."""
ASYNCHRONOUS = re.compile(r"\bsynchronous_commit\W+(?:to\W+)?(?:off|false|no|0)\b", re.IGNORECASE)
PLAIN_NAME = re.compile(r'"(\w+)"(?=\s*\()')
"""A function's name that needs no quotes."""
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/", re.DOTALL)


@lru_cache(maxsize=4096)
def write_in(statement: str) -> str | None:
    """The first words of a statement that write or lock, None where there are none. Quoted text is not looked at."""
    unlocks = UNLOCKS.search(statement)
    if unlocks is not None:
        return " ".join(unlocks.group().split())
    statement = PLAIN_NAME.sub(r"\1", statement)
    if WRITES.search(statement) is None:
        return None
    found = WRITES.search(QUOTED.sub("''", statement))
    return None if found is None else " ".join(found.group().split())[:60]


def refuse_writes(statement: str) -> None:
    """Raises: ReadOnlyUnit when the statement writes, locks rows, or takes an advisory lock."""
    words = write_in(statement)
    if words is not None:
        raise ReadOnlyUnit(f"a read-only unit of work cannot do {words!r}: open it with mode='rw'", words=words)


def refuse_asynchronous(statement: str) -> None:
    """Raises: BadInput when the statement lets commits return before they are on disk.

    Whatever position is noted after such a commit may lie before it: a causal read would miss it.
    """
    if "synchronous_commit" in statement and ASYNCHRONOUS.search(statement):
        raise BadInput("synchronous_commit = off is refused: later reads could miss what this unit writes")
