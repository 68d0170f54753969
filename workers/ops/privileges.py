"""As whom servers run: never as root, without creating a user, with at most one capability kept.

A clone under /root (mode 700) is unreadable to any other user, its virtual environment included. Root may hand down
exactly CAP_DAC_READ_SEARCH - read and pass, never write - as an ambient capability, and does so only when needed.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import Misconfigured

NOBODY = 65_534
CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_DAC_READ_SEARCH = 6, 7, 8, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about the caller and the way to the files that servers need."""

    euid: int
    capabilities: int
    """Bits both effective and in the bounding set."""

    target_uid: int
    unreachable: str
    """The first needed path that the target user cannot read; empty when all can be."""

    setpriv: str
    """Path of util-linux's setpriv; empty when missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How privileges are handled, and why."""

    action: Literal["keep", "drop", "drop_but_read", "refuse"]
    reason: str


def decide(facts: Facts) -> Decision:
    """Choose how servers shed privileges; `refuse` carries a remedy."""
    if facts.euid != 0:
        return Decision(action="keep", reason="an ordinary user has nothing to drop")
    if not facts.setpriv:
        return Decision(action="refuse", reason="setpriv is missing; install util-linux or run as an ordinary user.")
    if not _has(facts, CAP_SETUID, CAP_SETGID):
        return Decision(action="refuse", reason="root cannot change user here; run as an ordinary user instead.")
    if not facts.unreachable:
        return Decision(action="drop", reason=f"servers run as uid {facts.target_uid}")
    if _has(facts, CAP_DAC_READ_SEARCH):
        reason = f"servers run as uid {facts.target_uid} and may read {facts.unreachable}"
        return Decision(action="drop_but_read", reason=reason)
    return Decision(
        action="refuse",
        reason=f"{facts.unreachable} is closed to the unprivileged uid {facts.target_uid} that servers run as; "
        "move the clone (and its Python) out of it, for example to /opt, or run as an ordinary user.",
    )


def _has(facts: Facts, *capabilities: int) -> bool:
    return all(facts.capabilities >> bit & 1 for bit in capabilities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """Who owns the servers' folders and what goes in front of their command lines."""

    uid: int
    gid: int
    prefix: tuple[str, ...]
    """Command that sheds privileges and asks the kernel to kill the child when its supervisor dies."""

    watched: tuple[str, ...]
    """The same without shedding, for the few processes that keep the caller's user."""

    reason: str

    def own(self, path: Path) -> None:
        """Give a folder or file to the servers' user (nothing to do for an ordinary user)."""
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)


def settle(needed: Iterable[Path], *, owner: Path) -> Privileges:
    """Look at this machine and decide as whom servers run.

    Args:
        needed: Files and folders that every server must be able to read.
        owner: The run's folder; when it already belongs to an ordinary user, servers run as that user.
    Raises: Misconfigured, with the remedy.
    """
    uid, gid = _target(owner)
    setpriv = shutil.which("setpriv") or ""
    unreachable = next((str(block) for path in needed if (block := blocked(path, uid=uid, gid=gid))), "")
    capabilities = _capabilities()
    facts = Facts(
        euid=os.geteuid(), capabilities=capabilities, target_uid=uid, unreachable=unreachable, setpriv=setpriv
    )
    decision = decide(facts)
    if decision.action == "refuse":
        raise Misconfigured(f"Servers cannot be started: {decision.reason}")
    watched = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
    return Privileges(
        uid=uid, gid=gid, prefix=_prefix(decision, facts=facts, gid=gid), watched=watched, reason=decision.reason
    )


def _target(owner: Path) -> tuple[int, int]:
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    seen = owner.stat()
    return (seen.st_uid, seen.st_gid) if seen.st_uid != 0 else (NOBODY, NOBODY)


def _prefix(decision: Decision, *, facts: Facts, gid: int) -> tuple[str, ...]:
    if decision.action == "keep":
        return (facts.setpriv, "--pdeathsig", "KILL", "--") if facts.setpriv else ()
    kept = "-all,+dac_read_search" if decision.action == "drop_but_read" else "-all"
    bounding = ("--bounding-set", kept) if _has(facts, CAP_SETPCAP) else ()
    return (
        *(facts.setpriv, "--reuid", str(facts.target_uid), "--regid", str(gid), "--clear-groups", "--no-new-privs"),
        *("--inh-caps", kept, "--ambient-caps", kept, *bounding, "--pdeathsig", "KILL", "--"),
    )


def _capabilities() -> int:
    bits = {"CapEff": 0, "CapBnd": 0}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in bits:
            bits[name] = int(value, 16)
    return bits["CapEff"] & bits["CapBnd"]


def blocked(path: Path, *, uid: int, gid: int) -> Path | None:
    """Walk from the root to `path`; return the first step that this user may not take."""
    real = path.resolve()
    for step in (*reversed(real.parents), real):
        seen = step.stat()
        wanted = 0o5 if step.is_dir() else 0o4
        shift = 6 if seen.st_uid == uid else 3 if seen.st_gid == gid else 0
        if step != real and step.is_dir():
            wanted = 0o1
        if seen.st_mode >> shift & wanted != wanted:
            return step
    return None
