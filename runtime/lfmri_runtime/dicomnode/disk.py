"""Changes of the spool that outlive a crash: a rename on one file system, then the folders are flushed."""

import fcntl
import os
import shutil
from pathlib import Path

from lfmri_runtime.errors import TryAgainLater


def settle(folder: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename, and wait until both folders' entries are on the disk."""
    source.rename(target)
    settle(target.parent)
    settle(source.parent)


def discard(folder: Path, doomed: Path) -> None:
    """Remove a folder by way of a name that nobody looks at, so that a crash leaves all of it or nothing."""
    move(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def lock(path: Path) -> int:
    """Hold a lock file until the returned handle is closed or the process ends.

    Raises:
        TryAgainLater: another process holds it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise TryAgainLater(f"{path.parent} is another node's spool; expected a spool for every node") from None
    return handle
