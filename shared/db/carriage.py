"""How causal tokens travel between processes: in the headers of a task's message, and of an HTTP exchange.

A token in a header is a stranger's word. It makes a read fresher than it need be, at worst as fresh as the primary; it
opens nothing, and text that is no token is counted and ignored.
"""

from collections.abc import Mapping

from shared.db import tokens
from shared.db.tokens import CausalToken, merged
from shared.telemetry import db_metrics as metrics

HTTP_HEADER = "x-fleet-token"
"""On a response: what the caller has written by now. On a request: what its answer must not miss."""


def read(value: object, *, source: str) -> CausalToken | None:
    """The token in a header; None when there is none.

    Args:
        source: Whose header it is, for `fleet_db_tokens_unreadable_total`: few different words.
    """
    if value is None or value == "":
        return None
    token = tokens.parse(value)
    if token is None:
        metrics.TOKENS_UNREADABLE.labels(source).inc()
    return token


def onward(value: object = None) -> str | None:
    """What a message is sent with that came, or was made, with `value`: never less than the work under way has seen."""
    token = merged(tokens.current(), read(value, source="celery"))
    return None if token is None else str(token)


def beginning(header: str | None, claimed: CausalToken | None) -> CausalToken | None:
    """What a run must not miss from its first read on.

    Args:
        header: What its message says, which may be lost on the way, or made up: of another cluster it is nothing here.
        claimed: All that was committed before its claim; None where there is one node.
    """
    told = tokens.parse(header)
    if told is not None and claimed is not None and told.system_id != claimed.system_id:
        return claimed
    return merged(told, claimed)


def from_request(headers: Mapping[str, str]) -> CausalToken | None:
    """What an HTTP client has written or seen before: open the unit of work with it.

    Args:
        headers: As a web framework has them; names in any case.
    """
    value = headers.get(HTTP_HEADER)
    if value is None:
        value = next((text for name, text in headers.items() if name.lower() == HTTP_HEADER), None)
    return read(value, source="http")


def for_response(token: CausalToken | None = None) -> dict[str, str]:
    """Headers that tell an HTTP client what it has written and seen: give them back with the next request.

    Args:
        token: Beside what the work under way has written and seen.
    """
    told = merged(tokens.current(), token)
    return {} if told is None else {HTTP_HEADER: str(told)}


def minted(position: str | None, wal_file: str | None, *, system_id: int | None) -> CausalToken | None:
    """The token of a place in the primary's log, as its functions told it; None where something is unknown.

    Args:
        position: `pg_current_wal_flush_lsn()`.
        wal_file: `pg_walfile_name(pg_current_wal_lsn())`: begins with the timeline.
    """
    if position is None or wal_file is None or system_id is None:
        return None
    return CausalToken(system_id, int(wal_file[:8], 16), tokens.lsn_of(position), tokens.now_ms())
