"""The disk's watermark: nothing new is accepted when it could not be kept."""

import shutil
from pathlib import Path

MIB = 1 << 20


def shortage(folder: Path, least_free_mib: int) -> str | None:
    """Why nothing should be written below `folder`; None while more than the watermark is free."""
    try:
        free = shutil.disk_usage(folder).free // MIB
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if free >= least_free_mib:
        return None
    return f"{free} MiB free below {folder}; expected at least {least_free_mib}: free some space"
