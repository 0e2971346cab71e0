"""The folder that `lfmri simulate` leaves: pairs.csv, a scan for each row, a volume for each subject.

OUT/pairs.csv                      one row a pair, every parameter
OUT/pairs/<pair>/low.nii.gz        the simulated low-field scan
OUT/subjects/<subject>/brain.nii.gz, head.nii.gz, mask.nii.gz    the high-field side, RAS voxel order
"""

import csv
import gzip
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import atomic_write, write_text
from lfmri_trainer.simulation.draws import PairParameters

TABLE = "pairs.csv"
SPLITS = ("train", "validation", "test")


def low_path(folder: Path, pair: PairParameters) -> Path:
    """Where a pair's low-field scan lies."""
    return folder / "pairs" / pair.pair / "low.nii.gz"


def subject_path(folder: Path, subject: str, kind: str) -> Path:
    """Where a subject's brain, head or mask lies."""
    return folder / "subjects" / subject / f"{kind}.nii.gz"


def write_pairs(folder: Path, pairs: Iterable[PairParameters]) -> None:
    """Write pairs.csv in one move, sorted by pair."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(PairParameters)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(pair) for pair in sorted(pairs, key=lambda pair: pair.pair))
    write_text(folder / TABLE, text.getvalue())


def read_pairs(folder: Path) -> list[PairParameters]:
    """Read pairs.csv.

    Raises:
        InputRefused: the table is missing, a column is missing or unknown, or a value has the wrong type.
    """
    path = folder / TABLE
    if not path.is_file():
        raise InputRefused(f"{path} not found; expected the folder that `lfmri simulate` made")
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        columns, rows = reader.fieldnames, list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputRefused(f"{path}: not a table ({error}); expected the one that `lfmri simulate` wrote") from None
    expected = [field.name for field in fields(PairParameters)]
    if columns != expected:
        raise InputRefused(f"{path} has the columns {columns}; expected {expected}: simulate the pairs again")
    return [_pair(row, path, number) for number, row in enumerate(rows, start=2)]


def _pair(row: dict[str, str], path: Path, line: int) -> PairParameters:
    try:
        values = {field.name: field.type(row[field.name]) for field in fields(PairParameters)}  # type: ignore[operator]
    except (TypeError, ValueError) as error:
        raise InputRefused(f"{path}, line {line}: {error}; expected a row as `lfmri simulate` writes it") from None
    pair = PairParameters(**values)
    if pair.split not in SPLITS:
        raise InputRefused(f"{path}, line {line}: split {pair.split!r}; expected one of {', '.join(SPLITS)}")
    return pair


def write_volume(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write NIfTI-1, gzipped without a time stamp: the same data give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm", "sec")  # type: ignore[no-untyped-call]
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=4, mtime=0) as packed,
    ):
        packed.write(image.to_bytes())


def read_volume(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read a volume of this folder: float32 data and its affine."""
    if not path.is_file():
        raise InputRefused(
            f"{path} not found; expected a complete simulation: run `lfmri simulate` again to finish it, or, where its "
            f"subject was taken out, delete its rows from {TABLE}"
        )
    image = nib.Nifti1Image.from_filename(path)
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)
