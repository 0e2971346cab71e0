"""The kernels that TensorRT-RTX compiles on the card that runs them, kept beside their engine for the next process.

The file is the sha256 of what follows, and what the library wrote. The hash finds damage; what another card, driver or
version compiled the library refuses itself, and compiles anew.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfmri_runtime.backends.tensorrt.versions import is_rtx
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.files import atomic_write

if TYPE_CHECKING:
    import tensorrt as trt

#: More than this is not read, and so begun anew (assumed: some megabytes for each shape).
MAX_KERNELS_BYTES = 1 << 28
HASH_BYTES = hashlib.sha256().digest_size


class Kernels:
    """The library's cache of kernels, begun with what the file holds.

    Args:
        library: TensorRT-RTX; no other has such a cache.
        cache: of it, empty.
        path: of the file; need not exist.
    """

    def __init__(self, library: Any, cache: "trt.IRuntimeCache", path: Path) -> None:
        self._library, self._cache, self._path = library, cache, path
        self._kept = _read(path)
        if not self._kept:
            return
        if is_rtx(library):
            cache.deserialize(self._kept)  # or stays empty, where it is not of this card, driver and version

    def keep(self) -> None:
        """Write the file where kernels were compiled since; one that cannot be written costs the next process time."""
        if is_rtx(self._library):
            content = bytes(self._cache.serialize())
            if content != self._kept:
                with suppress(OSError, TryAgainLater), atomic_write(self._path) as temporary:
                    temporary.write_bytes(hashlib.sha256(content).digest() + content)
                self._kept = content


def _read(path: Path) -> bytes:
    """What was kept; empty where there is nothing, or not what was written."""
    try:
        if path.stat().st_size > MAX_KERNELS_BYTES:
            return b""
        content = path.read_bytes()
    except OSError:
        return b""
    found, kernels = content[:HASH_BYTES], content[HASH_BYTES:]
    return kernels if hashlib.sha256(kernels).digest() == found else b""
