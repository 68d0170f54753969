"""`fleet keys …`: master keys that seal what the fleet keeps; a new one, and the way from an old one to it."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import BadInput, Misconfigured
from workers.ops.commands import AsJson
from workers.ops.door import Door, Where
from workers.ops.screen import print_json

if TYPE_CHECKING:  # see workers.ops.door
    from shared.db.database import Database
    from shared.ledger.rotation import Bookmark, Progress
    from shared.ledger.vault import Vault

keys = typer.Typer(name="keys", help="Keys that seal what the fleet keeps on disk.", no_args_is_help=True)
TELL_EVERY_S = 5.0
AGAIN_AFTER_S = 1.0
MOST_PASSES = 10
"""A value that a worker holds locked is free within a commit; more passes than this would only hide that it is not."""


@keys.command()
def new(as_json: AsJson = False) -> None:
    """Make a key and print it as an entry of FLEET_LEDGER_KEYS; it is kept nowhere."""
    from shared.ledger.vault_knobs import new_key_line  # imported here: see workers.ops.door

    entry = new_key_line()
    if as_json:
        print_json({"id": entry.partition(":")[0], "entry": entry})
        return
    print(entry)
    print("Keep it safe: what is sealed under a key that is lost is lost too.", file=sys.stderr)


@keys.command()
def rotate(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option(metavar="BOOKMARK", help="Go on where an earlier one was cut off: its bookmark, JSON.")
    ] = None,
    page_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Rows that are looked at in one go.")] = 100,
    folder: Where = None,
    as_json: AsJson = False,
) -> None:
    """Put every sealed value under the first key of FLEET_LEDGER_KEYS, beside a running fleet.

    Payloads stay as they are, letter for letter. Exit code 1 while a value is left under another key.
    """
    start = None if since is None else _bookmark(since)
    door: Door = context.obj
    with door.client(folder) as client:
        done = client.operate(lambda database: walk(database, client.vault, since=start, page_rows=page_rows, say=_say))
        active = client.vault.active_key_id or ""
    if as_json:
        print_json(done.to_json(active))
    else:
        print(done.sentence(active))
    if not done.last.is_complete:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Walked:
    """What all passes together did; `last` is the last pass."""

    last: "Progress"
    rewrapped: int

    def to_json(self, active: str) -> dict[str, Any]:
        """As plain data."""
        last = self.last
        mark = None if last.bookmark is None else {"shelf": last.bookmark.shelf, "after": list(last.bookmark.after)}
        return {
            "key": active, "complete": last.is_complete, "read": last.read, "rewrapped": self.rewrapped,
            "current": last.current, "plain": last.plain, "left": last.left, "unreadable": last.unreadable,
            "still_under": dict(last.still_under), "bookmark": mark,
        }  # fmt: skip

    def sentence(self, active: str) -> str:
        """For people, with what is to be done next."""
        last = self.last
        facts = [f"{last.read} values read: {self.rewrapped} put under {active}"]
        facts += [f"{last.plain} of a time without keys are plain"] if last.plain else []
        told = f"{', '.join(facts)}."
        if not last.is_complete:
            under = ", ".join(f"{count} under {key}" for key, count in last.still_under.items())
            why = f"{last.unreadable} cannot be read with these keys" if last.unreadable else "workers held them"
            return f"{told} Left: {under} ({why}). Keep those keys and run this again."
        return (
            f"{told} Nothing is left under another key. Queues may still hold messages from before {active} came "
            "first: give older keys up once those are gone."
        )


async def walk(
    database: "Database", vault: "Vault", *, since: "Bookmark | None", page_rows: int,
    say: Callable[["Progress"], None],
) -> Walked:  # fmt: skip
    """Walk until a pass leaves nothing that a worker had locked.

    Raises: Misconfigured when there is no key; DatabaseUnavailable.
    """
    from shared.ledger.rotation import rotate as rotate_once  # imported here: see workers.ops.door

    rewrapped = 0
    for _ in range(MOST_PASSES):
        last = await rotate_once(database, vault, since=since, page_rows=page_rows, on_page=_now_and_then(say))
        rewrapped += last.rewrapped
        if not last.left:
            break
        await asyncio.sleep(AGAIN_AFTER_S)
    return Walked(last, rewrapped)


def _now_and_then(say: Callable[["Progress"], None]) -> Callable[["Progress"], None]:
    told_at = time.monotonic()

    def on_page(progress: "Progress") -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            say(progress)

    return on_page


def _say(progress: "Progress") -> None:
    mark = progress.bookmark
    where = "" if mark is None else json.dumps({"shelf": mark.shelf, "after": list(mark.after)})
    print(f"{progress.read} values read, {progress.rewrapped} re-wrapped; bookmark {where}", file=sys.stderr)


def _bookmark(text: str) -> "Bookmark":
    from shared.ledger.rotation import SHELVES, Bookmark  # imported here: see workers.ops.door

    try:
        given = json.loads(text)
        mark = Bookmark(given["shelf"], tuple(given["after"]))
    except (ValueError, TypeError, KeyError):
        raise Misconfigured('--since takes a bookmark as rotate prints it: {"shelf": …, "after": […]}.') from None
    shelf = next((one for one in SHELVES if one.name == mark.shelf), None)
    if shelf is None or len(mark.after) != len(shelf.keys):
        raise BadInput(f"no bookmark of this ledger: its columns are {', '.join(one.name for one in SHELVES)}")
    return mark
