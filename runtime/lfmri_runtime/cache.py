"""The folder in the user's cache for what can be made again: engines, compiled models, the choice of a back end."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path


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


@lru_cache
def _of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="lfmri-"))
