"""What has become quiet is enhanced, one series after the other, and handed to every destination at once."""

import re
import shutil
import time
from pathlib import Path

from lfmri_runtime.console import interruptions
from lfmri_runtime.console.disk import shortage
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ConsoleSettings
from lfmri_runtime.console.station import EnhanceOptions, Station
from lfmri_runtime.console.waits import Refusals
from lfmri_runtime.dicom.derived import write_derived, write_uncertainty
from lfmri_runtime.dicom.selection import reason_to_pass_by
from lfmri_runtime.dicom.series import Series, group_files, read_series
from lfmri_runtime.dicomnode.loop import Loop
from lfmri_runtime.dicomnode.spool import INTERRUPTIONS, Spool
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.errors import InputRefused, LfmriError, TryAgainLater

#: The derived series is on the source's grid, so that viewers show both in step.
OPTIONS = EnhanceOptions(grid="input")
#: Between two looks for what has rested long enough.
EXPIRE_SECONDS = 60.0
_UID = re.compile(r"[0-9.]{1,128}")


class Worker:
    """Enhances series.

    Args:
        settings: quiet time, label, uncertainty.
        spool: where series come from and go to.
        station: the one device.
        journal: gets what happened to each series.
    """

    def __init__(self, settings: ConsoleSettings, spool: Spool, station: Station, journal: Journal) -> None:
        self._settings = settings
        self._spool = spool
        self._station = station
        self._journal = journal
        self._expired = 0.0
        self._waits: dict[str, Refusals] = {}
        self._received: set[str] = set()
        self.loop = Loop("dicom worker", self._round, journal)

    def _round(self) -> None:
        if time.monotonic() - self._expired > EXPIRE_SECONDS:  # first, since a full disk ends a round early
            self._spool.expire()
            self._expired = time.monotonic()
        due = [folder for folder in self._spool.working() if not self._waits.get(folder.name, Refusals()).waiting()]
        delays = [self._tried(folder, {}) for folder in due]
        for series in self._spool.quiet(self._settings.dicom.quiet_seconds):
            if self.loop.stopping.is_set():
                return
            received = self._spool.claim(series)
            if received is not None:
                delays.append(self._tried(self._spool.root / "working" / series, {"receive": round(received, 4)}))
        for delay in filter(None, delays):
            raise delay

    def _tried(self, folder: Path, seconds: dict[str, float]) -> TryAgainLater | None:
        """Work on one series; one that is too large for the device just now, which is returned, holds up no other.

        It may never fit: it is tried again after waits that double, and came only once for the journal.

        Raises:
            TryAgainLater: the device has failed, or the disk is short: no other series would do better.
        """
        try:
            self._work(folder, seconds)
        except TryAgainLater as delay:
            if self._station.trouble() is not None or shortage(self._spool.root, self._settings.disk.least_free_mib):
                raise
            self._waits.setdefault(folder.name, Refusals()).add()
            return delay
        self._waits.pop(folder.name, None)
        self._received.discard(folder.name)
        return None

    def _work(self, folder: Path, seconds: dict[str, float]) -> None:
        """Bring one series to its next state, with a mark on it for as long as that takes.

        Raises:
            TryAgainLater: full disk and the like; the series stays, and is taken up again.
        """
        marks = folder / INTERRUPTIONS
        worn_out = interruptions.worn_out(marks)
        interruptions.begin(marks)
        try:
            self._advance(folder, seconds, worn_out=worn_out)
        finally:
            if self._station.trouble() is None:  # a device that failed takes the process down, and its mark stays
                interruptions.end(marks)

    def _advance(self, folder: Path, seconds: dict[str, float], *, worn_out: bool) -> None:
        """Bring one series to its next state; a series that cannot be enhanced stops nothing."""
        if self._spool.repeated(folder):
            self._spool.drop(folder)
            self._journal.record("passed-by", surface="dicom", source=folder.name, reason="came again, unchanged")
            return
        paths = self._spool.instances(folder)
        source = folder.name
        try:
            source = _source(paths, otherwise=source)
            if worn_out:
                raise InputRefused(interruptions.GIVEN_UP)
            reason = reason_to_pass_by(paths)
            if reason is None:
                self._enhance(folder, paths, source, seconds)
            else:
                self._spool.rest(folder, "passed-by", reason=reason)
                self._journal.record("passed-by", surface="dicom", source=source, reason=reason)
        except TryAgainLater:
            raise
        except LfmriError as error:
            self._fail(folder, source, str(error))
        except MemoryError:
            self._fail(folder, source, "too large for the memory of this machine")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - a fault met in one series must not stop the others
            self._fail(folder, source, f"a fault of lfmri ({type(error).__name__}); please report it")

    def _enhance(self, folder: Path, paths: list[Path], source: str, seconds: dict[str, float]) -> None:
        started = time.perf_counter()
        series = read_series(paths)
        read = round(time.perf_counter() - started, 4)
        if folder.name not in self._received:
            self._journal.record(
                "received",
                surface="dicom",
                source=source,
                sha256=series.sha256,
                instances=len(paths),
                seconds={**seconds, "read": read},
            )
            self._received.add(folder.name)
        enhanced = self._station.enhance(series.data, series.affine, surface="dicom", source=source, options=OPTIONS)
        started = time.perf_counter()
        place = self._spool.temporary()
        try:
            objects = self._write(place, series, enhanced)
            self._spool.commit(folder, objects, {"source": source, "sha256": series.sha256, "instances": len(objects)})
        finally:
            shutil.rmtree(place, ignore_errors=True)
        written = {"write": round(time.perf_counter() - started, 4)}
        self._journal.record("queued", surface="dicom", source=source, instances=len(objects), seconds=written)

    def _write(self, folder: Path, series: Series, enhanced: Enhanced) -> list[Path]:
        bundle, output = self._station.enhancer.bundle, self._settings.output
        objects = write_derived(folder, series, enhanced, bundle=bundle, label=output.label)
        if output.uncertainty:
            objects += write_uncertainty(folder, series, enhanced, bundle=bundle, label=output.label)
        return objects

    def _fail(self, folder: Path, source: str, reason: str) -> None:
        self._spool.rest(folder, "failed", reason=reason)
        self._journal.record("failed", surface="dicom", source=source, reason=reason)


def _source(paths: list[Path], *, otherwise: str) -> str:
    """The series' UID for the journal; what is none may hold anything, and the spool's name for it is told instead."""
    uid = next(iter(group_files(paths[:1])), "")
    return uid if _UID.fullmatch(uid) else otherwise
