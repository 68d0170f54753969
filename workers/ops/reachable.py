"""A copy of programs that ask the kernel whether they may be run, for a clone that other users cannot reach.

PostgreSQL's programs call access(2) on themselves, which leaves capabilities out of account: below /root (mode 700)
they refuse to start although they could. Only root meets this, and only root can make the copy.
"""

import os
import shutil
import tempfile
from pathlib import Path

from shared.errors import Misconfigured
from workers.ops.privileges import Privileges, blocked

CACHE = Path("/var/cache/agent-fleet")


def reachable(
    package: Path, *, privileges: Privileges, label: str, beside: tuple[str, ...] = (), cache: Path = CACHE
) -> Path:
    """The folder itself where the servers' user can reach it, else a copy of it, made once for each `label`.

    Args:
        label: Name and version of what the folder holds; the name of the folder with the copy.
        beside: Folders next to it that it needs at the same place, such as a wheel's own libraries.

    Raises: Misconfigured when the copy cannot be written.
    """
    if os.geteuid() != 0 or blocked(package, uid=privileges.uid, gid=privileges.gid) is None:
        return package
    copy = cache / label
    if not copy.exists():
        _copy([package, *(package.parent / name for name in beside)], copy)
    return copy / package.name


def _copy(folders: list[Path], copy: Path) -> None:
    try:
        copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".copy-", dir=copy.parent))
        unfinished.chmod(0o755)
        for folder in folders:
            shutil.copytree(folder, unfinished / folder.name, symlinks=True)
        try:
            unfinished.rename(copy)
        except OSError:  # another supervisor was quicker: its copy is as good
            shutil.rmtree(unfinished)
            if not copy.exists():
                raise
    except OSError as error:
        raise Misconfigured(
            f"{folders[0]} is closed to the servers' user and cannot be copied to {copy}: {error.strerror}; "
            "move the clone out of the closed folder, for example to /opt."
        ) from None
