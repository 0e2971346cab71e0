"""DICOM items: a folder, or one file of many frames, may hold several series; each has its own fate."""

import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lfmri_runtime.dicom.job import check_folders, write_series
from lfmri_runtime.dicom.selection import reason_to_pass_by
from lfmri_runtime.dicom.series import group_files, read_series
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.folder.items import files_below
from lfmri_runtime.folder.work import SURFACE, Result, Worker
from lfmri_runtime.sidecar import read_sidecar

#: PS3.5 9.1; anything else in a UID's place could be a name.
_UID = re.compile(r"[0-9.]{1,64}")


def work_on_series(worker: Worker, item: Path, name: str) -> tuple[Result, ...]:
    """Enhance every series of an item that is to be enhanced.

    Args:
        worker: whose station and layout are used.
        item: a folder or file; only read.
        name: that its results go by.

    Raises:
        InputRefused: the layout has no place for DICOM, or there is none in the item.
        UsageError: a label that does not fit.
        TryAgainLater: the machine could not finish now.
    """
    out = worker.layout.series(name)
    groups = group_files(files_below(item))
    if not groups:
        raise InputRefused("no DICOM images in it; expected the files of a series")
    check_folders(item, out, label=worker.settings.output.label)
    results: list[Result] = []
    for uid, paths in groups.items():
        source = uid if _UID.fullmatch(uid) else ""
        results += worker.attempt(item, source, partial(_one, worker, paths, out, source))
    return tuple(results)


def _one(worker: Worker, paths: Sequence[Path], out: Path, source: str) -> tuple[Result, ...]:
    reason = reason_to_pass_by(paths)
    if reason is not None:
        return (worker.pass_by(source, reason),)
    station, output = worker.station, worker.settings.output
    started = time.perf_counter()
    series = read_series(paths)
    read = time.perf_counter() - started
    document = _finished(out, series.sha256, station.enhancer.bundle.sha256)
    if document is not None:
        return (worker.found(source, document),)
    worker.received(source, sha256=series.sha256)
    enhanced = station.enhance(series.data, series.affine, surface=SURFACE, source=source, options=worker.options)
    _, document = write_series(
        station.enhancer.bundle,
        series,
        enhanced,
        out,
        uncertainty=out / "uncertainty" if output.uncertainty else None,
        label=output.label,
        read=read,
    )
    return (worker.sent(source, document),)


def _finished(out: Path, source: str, bundle: str) -> dict[str, Any] | None:
    """The sidecar of a derived series if there is one of this source by this bundle; it is written last."""
    for path in sorted(out.glob("*.json")):
        document = read_sidecar(path.with_suffix("")) or {}
        if document.get("input", {}).get("sha256") == source and document.get("bundle", {}).get("sha256") == bundle:
            return document
    return None
