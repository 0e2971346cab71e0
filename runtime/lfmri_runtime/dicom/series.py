"""A DICOM series to a volume: files in any order in, slices in order along their normal out."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.dicom.parsing import read_dataset, refusing
from lfmri_runtime.dicom.pixels import read_pixels
from lfmri_runtime.dicom.planes import RETIRED, Plane, is_multi_frame, planes_of
from lfmri_runtime.dicom.stacking import affine_of, order_of
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import sha256_file
from lfmri_runtime.volume import MAX_VOXELS
from lfmri_runtime.volume.checks import check_affine, check_values
from lfmri_runtime.volume.scan import edge_lengths

Float32Array = NDArray[np.float32]

#: More files than this are no one stack of slices.
MAX_FILES = 2048
#: Slice distances in the header and from the positions that differ by more than this, mm, are noted.
SAME_DISTANCE = 0.05
SENSELESS = "its elements hold values that make no sense"


@dataclass(frozen=True, eq=False)
class Series:
    """A series as its files hold it.

    Attributes:
        data: (i, j, k) float32, columns, rows, slices along the normal; rescaled, finite, not constant.
        affine: (4, 4), voxel index to mm, RAS+.
        datasets: pydicom's, without pixels: one for each slice in order, or the one of a multi-frame file.
        frames: of a multi-frame file, the index of each slice's frame; empty for one file a slice.
        uid: its SeriesInstanceUID.
        sha256: of the one file, or of the files' sorted sha256.
        notes: one line each for the user. The data sets hold free text: never print them.
    """

    data: Float32Array
    affine: NDArray[np.float64]
    datasets: tuple[Any, ...]
    frames: tuple[int, ...]
    uid: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Voxel edge lengths along the three voxel axes, mm."""
        return edge_lengths(self.affine)


def group_files(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Sort files into series by their headers, in the order in which they come.

    Returns:
        files by SeriesInstanceUID. A file that is in none is no DICOM, or damaged, or of no series (a DICOMDIR):
        the caller can count them.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        try:
            uid = _series_uid(path)
        except InputRefused:
            continue
        if uid:
            groups.setdefault(uid, []).append(path)
    return groups


def read_series(paths: Sequence[Path]) -> Series:
    """Read the files of one series.

    Args:
        paths: one file a slice, in any order, or one multi-frame file.

    Raises:
        InputRefused: a file is unreadable, damaged, compressed, or of another series; the slices are not one volume of
            one stack without gaps; too many files or voxels; voxels that are constant or not finite.
    """
    if not 1 <= len(paths) <= MAX_FILES:
        raise InputRefused(f"{len(paths)} files; expected 1 to {MAX_FILES}, the files of one series")
    place = paths[0] if len(paths) == 1 else paths[0].parent
    datasets: list[Any] = []
    planes: list[Plane] = []
    slices: list[Float32Array] = []
    voxels = 0
    for path in paths:
        dataset = open_image(path)
        with refusing(path, SENSELESS):
            found = planes_of(dataset)
            voxels += sum(plane.shape[0] * plane.shape[1] for plane in found)
            if voxels > MAX_VOXELS:
                raise InputRefused(f"over {MAX_VOXELS} voxels with the files before it; expected one scan of a head")
            slices.extend(read_pixels(dataset, found))
        datasets.append(dataset)
        planes.extend(found)
    with refusing(place, SENSELESS):
        uid = _one_series(datasets)
        order = order_of(planes)
    affine = affine_of([planes[index] for index in order])
    check_affine(affine, place)
    data = np.stack([slices[index] for index in order], axis=-1)
    check_values(data, place)
    one = len(paths) == 1
    return Series(
        data=data,
        affine=affine,
        datasets=tuple(datasets if one else [datasets[index] for index in order]),
        frames=tuple(order) if one else (),
        uid=uid,
        sha256=_digest(paths),
        notes=_notes(datasets[0], planes[order[0]], affine),
    )


def open_image(path: Path, *, pixels: bool = True) -> Any:
    """Read one file that must be DICOM.

    Raises:
        InputRefused: it is none, or damaged.
    """
    dataset = read_dataset(path, pixels=pixels)
    if dataset is None:
        raise InputRefused(f"{path}: not DICOM (no DICM after the preamble); expected the files of one series")
    return dataset


def _series_uid(path: Path) -> str:
    dataset = read_dataset(path, pixels=False)
    with refusing(path, SENSELESS):
        return "" if dataset is None else str(dataset.get("SeriesInstanceUID") or "")


def _one_series(datasets: list[Any]) -> str:
    uids = {str(dataset.get("SeriesInstanceUID") or "") for dataset in datasets}
    if len(uids) > 1 or "" in uids:
        raise InputRefused(f"{len(uids)} SeriesInstanceUIDs or an empty one; expected one: give one series alone")
    if len(datasets) > 1 and any(map(is_multi_frame, datasets)):
        raise InputRefused(f"{len(datasets)} files, some of many frames; expected one volume: give one file alone")
    return uids.pop()


def _digest(paths: Sequence[Path]) -> str:
    """One file's sha256 is the file's; several are named by that of their sorted sha256, whatever their order."""
    digests = sorted(sha256_file(path) for path in paths)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _notes(dataset: Any, plane: Plane, affine: NDArray[np.float64]) -> tuple[str, ...]:
    """What the header says that the positions contradict; the known faults of consoles."""
    notes = []
    distance = edge_lengths(affine)[2]
    if plane.distance is not None and abs(plane.distance - distance) > SAME_DISTANCE:
        notes.append(
            f"the header has slices {plane.distance:g} mm apart, their positions {distance:.4g} mm; "
            "the positions were used"
        )
        if plane.spacing == (1.0, 1.0):
            notes.append("its pixels are of exactly 1 mm there too, which nothing contradicts: check them")
    if "ImagePositionPatient" not in dataset and RETIRED["ImagePositionPatient"] in dataset:
        notes.append("slice positions stand only in retired elements (0020,0030) and (0020,0035); they were used")
    return tuple(notes)
