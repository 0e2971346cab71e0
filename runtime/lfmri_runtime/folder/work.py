"""What one item becomes: the one place where folders meet the core; it moves no input and replaces no output."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfmri_runtime.console.settings import ConsoleSettings
from lfmri_runtime.console.station import EnhanceOptions, Station
from lfmri_runtime.errors import LfmriError, TryAgainLater
from lfmri_runtime.files import sha256_file, write_json
from lfmri_runtime.folder.items import files_below, refusal
from lfmri_runtime.folder.layouts import Layout, is_image
from lfmri_runtime.job import Outputs, check_outputs, write_outputs
from lfmri_runtime.sidecar import describe_bundle, read_sidecar, sidecar_path
from lfmri_runtime.volume import read_scan

SURFACE = "folder"
ENHANCED, PASSED_BY, FAILED = "enhanced", "passed-by", "failed"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one scan or series.

    Attributes:
        status: enhanced, passed-by or failed.
        source: sha256 of the file, or UID of the series; empty where it could not be read.
        reason: why it was not enhanced; empty where it was.
        seconds: of each stage.
    """

    status: str
    source: str = ""
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


class Worker:
    """Enhances items into a layout.

    Args:
        station: the device.
        layout: where results go.
        settings: label, grid and uncertainty are used.
        options: of every enhancement.
    """

    def __init__(self, station: Station, layout: Layout, settings: ConsoleSettings, options: EnhanceOptions) -> None:
        self.station = station
        self.layout = layout
        self.settings = settings
        self.options = options
        self._received: set[str] = set()

    def work(self, item: Path, name: str) -> tuple[Result, ...]:
        """Enhance one item, or find that it was enhanced before.

        Args:
            item: a file or folder; only read.
            name: that its results go by.

        Returns:
            one result for a file, one for each series of DICOM; whatever was wrong with the item is in them.

        Raises:
            TryAgainLater: the machine could not finish now; nothing is wrong with the item.
        """
        why = self._why_not(item)
        if why is not None:
            return (self.fail("", why),)
        return self.attempt(item, "", lambda: self._image(item, name) if is_image(name) else self._dicom(item, name))

    def attempt(self, item: Path, source: str, run: Callable[[], tuple[Result, ...]]) -> tuple[Result, ...]:
        """Run a part; every error but TryAgainLater becomes a result, so that the next item has its turn."""
        try:
            return run()
        except TryAgainLater:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one item does, the watcher goes on
            return (self.fail(source, reason_of(error, item)),)

    def pass_by(self, source: str, reason: str) -> Result:
        """Record that a series is none that should be enhanced."""
        self.station.journal.record(PASSED_BY, surface=SURFACE, source=source, reason=reason)
        return Result(status=PASSED_BY, source=source, reason=reason)

    def received(self, source: str, **fields: Any) -> None:
        """Record that a scan came: once, however often it is tried until something becomes of it."""
        if source not in self._received:
            self.station.journal.record("received", surface=SURFACE, source=source, **fields)
            self._received.add(source)

    def sent(self, source: str, document: dict[str, Any]) -> Result:
        """Record that the results of `document`'s run are in place now."""
        seconds = document["seconds"]
        stages = {stage: seconds[stage] for stage in ("read", "write")}
        self.station.journal.record("sent", surface=SURFACE, source=source, seconds=stages)
        self._received.discard(source)
        return Result(status=ENHANCED, source=source, seconds=seconds)

    def found(self, source: str, document: dict[str, Any]) -> Result:
        """Record that they were in place before: the run that made them was killed before it could say so."""
        self.station.journal.record("sent", surface=SURFACE, source=source, reason="the results were there already")
        return Result(status=ENHANCED, source=source, seconds=document["seconds"])

    def fail(self, source: str, reason: str) -> Result:
        """Record that a scan could not be enhanced."""
        self.station.journal.record(FAILED, surface=SURFACE, source=source, reason=reason)
        self._received.discard(source)
        return Result(status=FAILED, source=source, reason=reason)

    def _why_not(self, item: Path) -> str | None:
        try:
            return refusal(item)
        except OSError as error:
            return f"cannot be read ({error.strerror}); check its rights"

    def _dicom(self, item: Path, name: str) -> tuple[Result, ...]:
        from lfmri_runtime.folder.series import work_on_series

        return work_on_series(self, item, name)

    def _image(self, item: Path, name: str) -> tuple[Result, ...]:
        outputs = self.layout.image(name)
        source = sha256_file(item)
        return self.attempt(item, source, lambda: (self._enhance(item, name, outputs, source),))

    def _enhance(self, item: Path, name: str, outputs: Outputs, source: str) -> Result:
        bundle = self.station.enhancer.bundle
        document = finished(outputs.scan, source=source, bundle=bundle.sha256)
        if document is not None:
            return self.found(source, document)
        self.received(source)
        check_outputs([(item, outputs)])
        started = time.perf_counter()
        scan = read_scan(item)
        read = time.perf_counter() - started
        enhanced = self.station.enhance(scan.data, scan.affine, surface=SURFACE, source=source, options=self.options)
        details = {"label": self.settings.output.label, **self.layout.details(name)}
        if outputs.uncertainty is not None:
            write_json(sidecar_path(outputs.uncertainty), {"bundle": describe_bundle(bundle), **details})
        document = write_outputs(bundle, scan, enhanced, outputs, input_sha256=source, read=read, details=details)
        return self.sent(source, document)


def finished(scan: Path, *, source: str, bundle: str) -> dict[str, Any] | None:
    """The sidecar of an enhanced scan if it was made of this input by this bundle; it is written last.

    Raises:
        InputRefused: there is a sidecar that `lfmri` did not write.
    """
    document = read_sidecar(scan)
    if document is None or not scan.is_file():
        return None
    same = document.get("input", {}).get("sha256") == source and document.get("bundle", {}).get("sha256") == bundle
    return document if same else None


def reason_of(error: Exception, item: Path) -> str:
    """An error as one line that names no file, since a name may be a patient's."""
    if isinstance(error, LfmriError):
        text = str(error)
        for path in sorted((item, *_inside(item)), key=lambda path: -len(str(path))):
            text = text.replace(str(path), "the scan" if path == item else "a file of it")
    elif isinstance(error, OSError):
        text = f"cannot be read ({error.strerror}); check the files and their rights"
    elif isinstance(error, MemoryError):
        text = "not enough memory; expected a scan that fits: crop it, or close other programs"
    else:
        text = f"unexpected {type(error).__name__}; report it with the scan's format"
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def _inside(item: Path) -> list[Path]:
    with suppress(OSError):
        return files_below(item)
    return []


def document_of(results: Sequence[Result], bundle: str) -> dict[str, Any]:
    """result.json: what became of each scan, with whole milliseconds for each stage; no file is named."""
    return {
        "bundle": bundle,
        "scans": [
            {
                "status": result.status,
                "source": result.source,
                "reason": result.reason,
                "milliseconds": {stage: round(1000 * seconds) for stage, seconds in result.seconds.items()},
            }
            for result in results
        ],
    }
