"""DICOM for `lfmri enhance`: a folder of files, or one file of many frames, as a scan."""

from pathlib import Path
from typing import Any

import click

from lfmri.progress import progress_bar
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.job import Outputs

#: PS3.10 7.1: four letters after a preamble of 128 bytes.
_MAGIC = b"DICM"
_PREAMBLE = 128


def is_dicom(scan: Path) -> bool:
    """Whether a scan is a folder, or a file that says that it is DICOM."""
    if scan.is_dir():
        return True
    try:
        with scan.open("rb") as stream:
            return stream.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def check_dicom(jobs: list[tuple[Path, Outputs]], *, mask: Path | None, label: str | None) -> None:
    """Find out before the work begins whether DICOM scans can be enhanced with these options.

    Raises:
        UsageError: options that do not go together, or an output in the originals' folder.
        BackendMissing: pydicom is not installed.
        TryAgainLater: a place that cannot be written.
    """
    if label is not None and not jobs:
        raise UsageError("--label is for DICOM; expected a folder of DICOM files as SCAN")
    for scan, outputs in jobs:
        if mask is not None or outputs.page is not None or outputs.residual is not None:
            raise UsageError("--mask, --report and --residual take NIfTI; expected a SCAN that dcm2niix converted")
        from lfmri_runtime.dicom.job import check_folders

        check_folders(scan, *_folders(outputs), **_label(label))


def enhance_dicom(enhancer: Enhancer, scan: Path, outputs: Outputs, *, label: str | None, **settings: Any) -> None:
    """Enhance every series of a folder that is to be enhanced, and say which are not and why.

    Raises:
        InputRefused: the first series that could not be read to its end, once the others are done.
    """
    from lfmri_runtime.dicom.job import choose, enhance_series

    choice = choose(scan)
    for note in choice.notes:
        click.echo(f"lfmri: note: {note}", err=True)
    refused = []
    for number, paths in enumerate(choice.series, start=1):
        name = f"series {number} of {len(choice.series)}"
        try:
            with progress_bar(f"enhancing {scan.name}, {name}") as progress:
                folder, document = enhance_series(
                    enhancer,
                    paths,
                    outputs.scan,
                    uncertainty=outputs.uncertainty,
                    progress=progress,
                    **_label(label),
                    **settings,
                )
        except InputRefused as refusal:
            refused.append(refusal)
            if len(choice.series) > 1:
                click.echo(f"lfmri: note: {name} ({len(paths)} files) was refused: {refusal}", err=True)
            continue
        for note in document["notes"]:
            click.echo(f"lfmri: note: {note}", err=True)
        click.echo(f"wrote {folder}")
    if refused:
        raise refused[0]


def _folders(outputs: Outputs) -> list[Path]:
    return [folder for folder in (outputs.scan, outputs.uncertainty) if folder is not None]


def _label(label: str | None) -> dict[str, Any]:
    return {} if label is None else {"label": label}
