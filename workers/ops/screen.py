"""How the command line shows itself: progress on stderr, results on stdout, JSON when asked for."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.errors import FleetError
from workers.ops.inspection import Inspection

TABLE_WIDTH = 1_000
STYLES = {"ready": "green", "finished": "green", "failed": "bold red", "stopped": "dim", "held": "yellow"}


def print_json(found: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(found, indent=2))


def print_error(error: FleetError, *, as_json: bool) -> None:
    """One sentence (or one JSON object) on stderr."""
    print(json.dumps({"error": error.as_dict()}) if as_json else f"Error: {error.message}", file=sys.stderr)


def print_fleet(seen: Inspection) -> None:
    """The table of servers and where to find them."""
    console = Console(width=TABLE_WIDTH, soft_wrap=True)  # addresses are for copying: never cut, let the terminal wrap
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("server", "kind", "state", "pid", "address"):
        table.add_column(heading, no_wrap=True)
    for server in seen.servers:
        state = server.status if server.healthy else f"{server.status}: {server.detail}"
        style = STYLES["ready"] if server.healthy else STYLES["failed"]
        table.add_row(server.name, server.kind, Text(state, style=style), str(server.pid or ""), server.url)
    console.print(table)


class Progress:
    """Servers coming up: a live table on a terminal, one line a change elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._rows: dict[str, tuple[str, str]] = {}
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw while inside."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=12) as self._live:
            yield

    def update(self, *, server: str, status: str, reason: str) -> None:
        """Take in one event."""
        self._rows[server] = (status, reason.splitlines()[0] if reason else "")
        if self._live is not None:
            self._live.update(self._table())
        elif status != "starting" or reason:
            self._console.print(
                f"{server}: {status}{' - ' + reason.splitlines()[0] if reason else ''}", highlight=False
            )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for server, (status, reason) in self._rows.items():
            table.add_row(server, Text(status, style=STYLES.get(status, "cyan")), Text(reason, style="dim"))
        return table
