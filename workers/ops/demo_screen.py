"""How `fleet demo` shows itself: one line for each thing done, a spinner for the one under way, nothing else."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from workers.ops.spec import Event

WIDEST = 96
INDENT = 4
MARKS = {"ready": "✓", "finished": "✓", "failed": "✗", "held": "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTale:
    """What happened to one step of the task whose worker was killed."""

    name: str
    before: str
    """done, in doubt, or nothing: as the ledger had it when the worker was dead."""

    after: str
    """What the second worker did with it."""

    executions: int
    repeats: int


class DemoScreen:
    """A spinner on a terminal, plain lines elsewhere, silence for `--json`. `on_event` may come from another thread."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._console.width = min(self._console.width, WIDEST) if self._console.is_terminal else WIDEST
        self._status: Status | None = None
        self._doing = ""
        self._servers: dict[str, str] = {}

    @contextmanager
    def doing(self, what: str, *, done: str) -> Iterator[None]:
        """Show what is going on; afterwards say what is done (if anything), and how long it took."""
        began = time.monotonic()
        self._doing, self._servers = what, {}
        try:
            with self._console.status(f" {what} …", spinner="dots") as self._status:
                yield
        finally:
            self._status = None
        if done:
            self._line(done, seconds=time.monotonic() - began)

    def on_event(self, event: Event) -> None:
        """Show how far each server is."""
        self._servers[event.server] = MARKS.get(event.status, "…")
        status = self._status
        if status is not None:
            seen = "  ".join(f"{name} {mark}" for name, mark in self._servers.items())
            status.update(f" {self._doing}:  {seen}")

    def heading(self, text: str) -> None:
        """The start of a part."""
        self.gap()
        self._print(Text(text, style="bold"))

    def gap(self) -> None:
        """An empty line."""
        self._print("")

    def aside(self, text: str) -> None:
        """A remark."""
        self._print(Padding(Text(text, style="dim"), (0, 0, 0, INDENT), expand=False))

    def alarm(self, text: str) -> None:
        """Something that broke, on purpose."""
        self._print(Text.assemble("  ", ("✗", "bold red"), f" {text}"))

    def dialogue(self, question: str, answer: str) -> None:
        """What was asked, and what came back."""
        table = Table.grid(padding=(0, 1))
        table.add_column(width=3, justify="right")
        table.add_column()
        table.add_row(Text("Q", style="bold cyan"), Text(question))
        table.add_row(Text("A", style="bold green"), Text(answer))
        self._print(table)

    def steps(self, tales: Sequence[StepTale], *, first: str, second: str) -> None:
        """Every step, before and after the kill."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
        for heading in ("step", f"{first}, killed", second):
            table.add_column(heading, no_wrap=True)
        for tale in tales:
            style = "red" if tale.repeats else "yellow" if tale.executions > 1 else "green"
            after = Text(tale.after, style="dim" if tale.before == "done" and not tale.repeats else style)
            before_style = "green" if tale.before == "done" else "yellow"
            table.add_row(tale.name, Text(tale.before, style=before_style), after)
        self._print(Padding(table, (0, 0, 0, INDENT), expand=False))

    def verdict(self, text: str, *, good: bool) -> None:
        """What it all comes to."""
        self._print(Padding(Text(text, style="bold green" if good else "bold red"), (0, 0, 0, INDENT), expand=False))

    def _line(self, text: str, *, seconds: float) -> None:
        took = f"{seconds:.1f} s"
        room = self._console.width - INDENT - len(took)
        shown = text if len(text) <= room else text[: room - 1] + "…"
        self._print(Text.assemble("  ", ("✓", "green"), f" {shown:<{room}}", (took, "dim")))

    def _print(self, what: RenderableType) -> None:
        self._console.print(what)
