"""The folder in the user's cache for what can be made again: engines, compiled models, the choice of a back end.

What a library compiled is kept sealed: a file of the sha256 of what follows, and what the library wrote. The hash finds
damage; what another machine or version compiled the library refuses itself.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.files import atomic_write

#: More than this is not read, and so made anew (assumed: a compiled model has some tens of megabytes).
MAX_SEALED_BYTES = 1 << 28
HASH_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """`lfmri` in the user's cache, as the XDG base directory specification says; need not exist.

    A user without a home, as a container may have, gets a new one among the temporary files, this process's alone: in
    a folder of a known name there somebody else could have put something.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "lfmri"
    try:
        return Path.home() / ".cache" / "lfmri"
    except RuntimeError:
        return _of_this_process()


def read_sealed(path: Path) -> bytes:
    """What was kept; empty where there is nothing, or not what was written."""
    try:
        if path.stat().st_size > MAX_SEALED_BYTES:
            return b""
        content = path.read_bytes()
    except OSError:
        return b""
    found, kept = content[:HASH_BYTES], content[HASH_BYTES:]
    return kept if hashlib.sha256(kept).digest() == found else b""


def keep_sealed(path: Path, content: bytes) -> None:
    """Write the file; one that cannot be written costs the next process time."""
    with suppress(OSError, TryAgainLater), atomic_write(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def source_hash(folder: Path) -> str:
    """sha256 of the Python files below a folder: what they made before they changed is made anew."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache
def _of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="lfmri-"))
