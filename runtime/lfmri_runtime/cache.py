"""The folder in the user's cache for what can be made again: engines, compiled models, the choice of a back end."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`lfmri` in the user's cache, as the XDG base directory specification says; need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "lfmri"
