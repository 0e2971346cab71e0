"""What happened, once: events go to the audit log and to the metrics.

An event holds hashes, UIDs, sizes, reasons and timings; never a patient's name, a header's text or a file's name.
"""

import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from lfmri_runtime.errors import TryAgainLater


class Sink(Protocol):
    """Takes events."""

    def record(self, event: str, fields: dict[str, Any]) -> None:
        """Take one event; called from any thread."""
        ...


class Journal:
    """Hands each event to every sink.

    Args:
        sinks: the audit log, the metrics.
    """

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    def record(self, event: str, **fields: Any) -> None:
        """Record one event; where one sink cannot take it, the others have it all the same.

        Args:
            event: what happened, one word: received, enhanced, passed-by, refused, failed, delayed, queued,
                sent, ready, resumed, stopped.
            **fields: plain values; `surface` (folder, mrd, dicom), `source` (the input's sha256 or series UID),
                `reason`, and `seconds` (a number for each stage) mean the same in every event.

        Raises:
            TryAgainLater: the audit log cannot be written.
        """
        failed: TryAgainLater | None = None
        for sink in self._sinks:
            try:
                sink.record(event, fields)
            except TryAgainLater as error:
                failed = error
        if failed is not None:
            raise failed

    def tell(self, event: str, **fields: Any) -> None:
        """Record an event of the service itself, on which no scan hangs; what cannot be written stops nothing."""
        with suppress(TryAgainLater):
            self.record(event, **fields)


class AuditLog:
    """Appends one JSON object a line, flushed to the disk, so that what was done outlives a crash.

    Args:
        path: of the log; created with its folder, readable by its owner and group alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._trouble: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise self._unwritable(error) from None

    def trouble(self) -> str | None:
        """Why the log cannot be written; None while it can.

        After a failure a line is tried at every question: a service that says why it should get no scans would
        otherwise never find out that it can write again.
        """
        missed = self._trouble
        if missed is not None:
            with suppress(TryAgainLater):
                self.record("resumed", {"reason": f"lines before this one are missing: {missed}"})
        return self._trouble

    def record(self, event: str, fields: dict[str, Any]) -> None:
        """Append one line."""
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event, **fields}
        content = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._lock:
            whole = os.fstat(self._file).st_size
            try:
                while content:
                    content = content[os.write(self._file, content) :]
                os.fsync(self._file)
            except OSError as error:
                with suppress(OSError):  # or the next line would be joined to half of this one, and lost with it
                    os.ftruncate(self._file, whole)
                unwritable = self._unwritable(error)
                self._trouble = str(unwritable)
                raise unwritable from None
            self._trouble = None

    def _unwritable(self, error: OSError) -> TryAgainLater:
        return TryAgainLater(f"{self._path}: {error.strerror}; expected an audit log that can be appended to")
