"""What a header and its voxels must be for a scan to be enhanced; everything else is refused by name."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.volume.scan import CONFLICT_MM, corner_distance, edge_lengths, is_nifti

MAX_VOXELS = 512**3
MIN_AXIS_VOXELS = 2  # clinical stacks with very few slices are real; a single slice has no thick axis
VOXEL_MM = (0.05, 50.0)
FARTHEST_MM = 1e5  # float32 transforms place voxels to 0.01 mm up to here
_DTYPE_WORDS = {"c": "complex numbers", "V": "colours or of a type not known here", "f": "floats of more than 64 bits"}


def check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that are not real numbers of at most 64 bits."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputRefused(
            f"{path}: voxels are {_DTYPE_WORDS.get(dtype.kind, 'of an unknown type')}; "
            "expected real numbers of 64 bits at most; convert it, to float32 for example"
        )


def check_grid(path: Path, shape: list[int]) -> None:
    """Refuse a shape that is not one 3-D volume of a size that fits."""
    said = " x ".join(map(str, shape))
    if len(shape) < 3:
        raise InputRefused(f"{path}: {len(shape)} axes ({said}); expected a 3-D volume; give the whole stack")
    if min(shape) < 1:
        raise InputRefused(f"{path}: {said} voxels in the header; expected axes of 1 up; export the scan again")
    if math.prod(shape[3:]) > 1:
        raise InputRefused(
            f"{path}: {math.prod(shape[3:])} volumes ({said}); expected one; "
            "choose one, for example with nibabel: img.slicer[..., 0]"
        )
    if min(shape[:3]) < MIN_AXIS_VOXELS:
        raise InputRefused(f"{path}: a single slice ({said}); expected {MIN_AXIS_VOXELS} or more; give the whole stack")
    if math.prod(shape) > MAX_VOXELS:
        raise InputRefused(f"{path}: the header promises {said} voxels; at most {MAX_VOXELS} fit; crop or resample it")


def check_spacing(path: Path, spacing: NDArray[Any]) -> None:
    """Refuse voxel sizes that are not three positive numbers, mm."""
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        said = " x ".join(f"{size:g}" for size in spacing.tolist())
        raise InputRefused(f"{path}: voxel sizes of {said} in the header; expected positive mm; export the scan again")


def read_affine(header: Any, path: Path, notes: list[str]) -> NDArray[np.float64]:
    """Choose the transform from voxels to mm and refuse one that is no geometry of a scan."""
    with np.errstate(all="ignore"):  # broken numbers are refused below
        try:
            affine = np.asarray(
                _nifti_affine(header, notes) if is_nifti(header) else header.get_affine(), dtype=np.float64
            )
        except ValueError as error:
            raise InputRefused(f"{path}: the qform in its header is no rotation; export the scan again") from error
    check_affine(affine, path)
    return affine


def check_affine(affine: NDArray[np.float64], path: Path) -> None:
    """Refuse a transform from voxels to mm that is no geometry of a scan."""
    with np.errstate(all="ignore"):  # broken numbers are refused below
        size = edge_lengths(affine)
        volume = abs(np.linalg.det(affine[:3, :3]))
    if not np.isfinite(affine).all():
        raise InputRefused(f"{path}: its orientation holds NaN or infinity; export the scan again")
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        raise InputRefused(f"{path}: its origin is more than {FARTHEST_MM:g} mm away; export the scan again")
    if volume <= 1e-6 * math.prod(size):
        raise InputRefused(f"{path}: its orientation is singular (voxel axes in one plane); export the scan again")
    if min(size) < VOXEL_MM[0] or max(size) > VOXEL_MM[1]:
        said = " x ".join(f"{edge:g}" for edge in size)
        raise InputRefused(f"{path}: voxels of {said} mm; expected {VOXEL_MM[0]} to {VOXEL_MM[1]} mm; check its units")


def _nifti_affine(header: Any, notes: list[str]) -> NDArray[np.float64]:
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_sform and not has_qform:
        notes.append("the header gives no orientation; voxel axes were assumed to run right, front, head (RAS)")
        return np.diag([*header["pixdim"][1:4].astype(np.float64), 1.0])
    qform: NDArray[np.float64] = header.get_qform()
    if not has_sform:
        return qform
    sform: NDArray[np.float64] = header.get_sform()
    apart = corner_distance(sform, qform, header.get_data_shape()[:3]) if has_qform else 0.0
    if not apart <= CONFLICT_MM:
        notes.append(f"sform and qform in the header differ by up to {apart:.3g} mm; the sform was used")
    return sform


def check_values(data: NDArray[np.float32], path: Path) -> None:
    """Refuse voxels that are not all finite, or all the same."""
    check_signal(data, path)
    if data.min() == data.max():
        raise InputRefused(f"{path}: every voxel has the same value; expected an image; check the file")


def check_signal(data: NDArray[np.float32], path: Path) -> None:
    """Refuse voxels that are not all finite, or all zero."""
    broken = data.size - int(np.count_nonzero(np.isfinite(data)))
    if broken:
        raise InputRefused(f"{path}: {broken} of {data.size} voxels are NaN or infinite; set them to a number first")
    if not data.any():
        raise InputRefused(f"{path}: every voxel is zero; expected an image; check that the right file was given")
