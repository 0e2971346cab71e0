"""A folder of DICOM files in, derived series out: what is around the core for files on disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.console.settings import LABEL, check_label
from lfmri_runtime.dicom.derived import derived_series_uid, write_derived, write_uncertainty
from lfmri_runtime.dicom.selection import reason_to_pass_by
from lfmri_runtime.dicom.series import Series, group_files, read_series
from lfmri_runtime.draws import Progress
from lfmri_runtime.enhancer import Enhanced, Enhancer
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import check_writable, write_json
from lfmri_runtime.sidecar import describe

#: A folder with more files than this is not one examination's.
MAX_FOLDER_FILES = 100_000


@dataclass(frozen=True)
class Choice:
    """What of a folder is to be enhanced.

    Attributes:
        series: the files of each.
        notes: one line for each series that is passed by, and one for files that are no DICOM.
    """

    series: tuple[tuple[Path, ...], ...]
    notes: tuple[str, ...]


def check_folders(source: Path, *outputs: Path, label: str = LABEL) -> None:
    """Find out before the work begins whether its outputs can be written.

    Args:
        source: a folder of DICOM files, or a file.
        outputs: folders for the enhanced series, and for the uncertainty where it is asked for.
        label: the site's own text.

    Raises:
        UsageError: an output that is the source's own folder or another output's, or a label that does not fit.
        TryAgainLater: a place that cannot be written.
    """
    check_label(label)
    taken = {(source if source.is_dir() else source.parent).resolve(): "the originals"}
    for output in outputs:
        place = output.resolve()
        if place in taken:
            raise UsageError(f"{output} holds {taken[place]}; expected a folder of its own for every output")
        taken[place] = "another output"
        check_writable(output / "enhanced.json")


def choose(source: Path) -> Choice:
    """Sort a folder's files (those in folders below too, hidden ones not) into series and choose among them.

    Args:
        source: a folder of DICOM files, or one file.

    Raises:
        InputRefused: nothing in it is to be enhanced; the message says why.
    """
    files = [source]
    if source.is_dir():
        files = list(islice((path for path in source.rglob("*") if _visible(path)), MAX_FOLDER_FILES + 1))
    if len(files) > MAX_FOLDER_FILES:
        raise InputRefused(f"{source}: over {MAX_FOLDER_FILES} files; expected the folder of one examination")
    groups = group_files(sorted(files))
    other = len(files) - sum(map(len, groups.values()))
    notes = [f"{other} of {len(files)} files are no DICOM images or damaged, and were left out"] if other else []
    series = []
    for number, paths in enumerate(groups.values(), start=1):
        reason = _reason(paths)
        if reason is None:
            series.append(tuple(paths))
        else:
            notes.append(f"series {number} of {len(groups)} ({len(paths)} files) was passed by: {reason}")
    if not series:
        raise InputRefused(f"{source}: no series to enhance; {'; '.join(notes) or 'no files'}; give another folder")
    return Choice(tuple(series), tuple(notes))


def enhance_series(
    enhancer: Enhancer,
    paths: Sequence[Path],
    out: Path,
    *,
    uncertainty: Path | None = None,
    label: str = LABEL,
    progress: Progress,
    **settings: Any,
) -> tuple[Path, dict[str, Any]]:
    """Read a series, enhance it, write the derived one; the sidecar comes last and says that all is there.

    Args:
        enhancer: opened.
        paths: the files of one series.
        out: gets a folder named by the derived SeriesInstanceUID, and beside it that name with .json.
        uncertainty: gets the standard deviation's folder; None writes none.
        label: the site's own text.
        progress: as `Enhancer.enhance` takes it.
        **settings: of `Enhancer.enhance`.

    Returns:
        the derived series' folder and the sidecar's content.

    Raises:
        InputRefused: an unusable series.
        TryAgainLater: an output could not be written.
    """
    started = time.perf_counter()
    series = read_series(paths)
    read = time.perf_counter() - started
    enhanced = enhancer.enhance(series.data, series.affine, progress=progress, **settings)
    return write_series(enhancer.bundle, series, enhanced, out, uncertainty=uncertainty, label=label, read=read)


def write_series(
    bundle: Bundle,
    series: Series,
    enhanced: Enhanced,
    out: Path,
    *,
    uncertainty: Path | None = None,
    label: str = LABEL,
    read: float,
) -> tuple[Path, dict[str, Any]]:
    """Write a derived series, its uncertainty and, last, the sidecar that says that all is there.

    Args:
        bundle: that was used.
        series: the source.
        enhanced: the result.
        out: as for `enhance_series`.
        uncertainty: likewise.
        label: the site's own text.
        read: seconds that reading took.

    Returns:
        as `enhance_series`.

    Raises:
        InputRefused: the source's elements cannot be written.
        TryAgainLater: an output could not be written.
    """
    started = time.perf_counter()
    uid = derived_series_uid(series, enhanced, bundle=bundle, label=label)
    write_derived(out / uid, series, enhanced, bundle=bundle, label=label)
    if uncertainty is not None and enhanced.std is not None:
        write_uncertainty(uncertainty / uid, series, enhanced, bundle=bundle, label=label)
    seconds = {"read": round(read, 4), "write": round(time.perf_counter() - started, 4)}
    document = describe(bundle, series, enhanced, input_sha256=series.sha256, seconds=seconds)
    write_json(out / f"{uid}.json", document)
    return out / uid, document


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_file()


def _reason(paths: Sequence[Path]) -> str | None:
    try:
        return reason_to_pass_by(paths)
    except InputRefused as refusal:
        return str(refusal)
