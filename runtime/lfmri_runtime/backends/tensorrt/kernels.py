"""The kernels that TensorRT-RTX compiles on the card that runs them, kept sealed beside their engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfmri_runtime.backends.tensorrt.versions import is_rtx
from lfmri_runtime.cache import keep_sealed, read_sealed

if TYPE_CHECKING:
    import tensorrt as trt


class Kernels:
    """The library's cache of kernels, begun with what the file holds.

    Args:
        library: TensorRT-RTX; no other has such a cache.
        cache: of it, empty.
        path: of the file; need not exist.
    """

    def __init__(self, library: Any, cache: "trt.IRuntimeCache", path: Path) -> None:
        self._library, self._cache, self._path = library, cache, path
        self._kept = read_sealed(path)
        if not self._kept:
            return
        if is_rtx(library):
            cache.deserialize(self._kept)  # or stays empty, where it is not of this card, driver and version

    def keep(self) -> None:
        """Write the file where kernels were compiled since; one that cannot be written costs the next process time."""
        if is_rtx(self._library):
            content = bytes(self._cache.serialize())
            if content != self._kept:
                keep_sealed(self._path, content)
                self._kept = content
