"""Models that OpenVINO compiled, kept sealed for the next process."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from lfmri_runtime.cache import keep_sealed, read_sealed, source_hash
from lfmri_runtime.machine import cpu

#: Compiled parts that are kept, the last used ones; each has some megabytes, and every size of slice its own.
MAX_KEPT = 16
ENDING = ".compiled"


class CompiledModels:
    """A folder of compiled models; one that cannot be read or written only costs time.

    The library's own cache is not used: it checks nothing of what it loads, and grows for ever.

    Args:
        core: OpenVINO's.
        folder: of this bundle; need not exist.
        version: of the library.
    """

    def __init__(self, core: Any, folder: Path, version: str) -> None:
        self._core, self._folder = core, folder
        self._about = [version, cpu(), source_hash(Path(__file__).parent)]

    def compile(self, model: Any, settings: Mapping[str, Any], *about: object) -> Any:
        """Compile a model, or load what was compiled before.

        Args:
            model: an OpenVINO model.
            settings: of its compilation.
            about: what tells it from others of the bundle: its part and shape.
        """
        key = json.dumps([*self._about, dict(settings), *about], sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{ENDING}"
        content = read_sealed(path)
        if content:
            with suppress(RuntimeError):  # of a library that was built otherwise
                loaded = self._core.import_model(BytesIO(content), "CPU", dict(settings))
                with suppress(OSError):
                    os.utime(path)
                return loaded
        compiled = self._core.compile_model(model, "CPU", dict(settings))
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            keep_sealed(path, compiled.export_model().getvalue())
            self._drop_oldest()
        return compiled

    def _drop_oldest(self) -> None:
        kept = sorted(self._folder.glob(f"*{ENDING}"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-MAX_KEPT]:
            path.unlink(missing_ok=True)
