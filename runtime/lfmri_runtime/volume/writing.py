"""Writing a volume with another scan's header: its geometry, its type on disk, its scaling."""

from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import UsageError
from lfmri_runtime.files import atomic_write, create_binary
from lfmri_runtime.volume.scan import (
    CONFLICT_MM,
    MGH,
    MGH_HEADER_BYTES,
    MGH_VOXELS_AT,
    PACKED,
    SUFFIXES,
    Scan,
    corner_distance,
    edge_lengths,
    is_nifti,
    scaling_of,
    suffix_of,
)

MIN_LEVELS = 1000  # an integer image with fewer steps than this loses contrast that the network made
MAX_CODE = 65535  # finer steps than 16 bits would only store noise


def write_scan(path: Path, data: NDArray[Any], affine: NDArray[Any], like: Scan) -> None:
    """Write a volume whole or not at all, with the header, the transforms' codes, the units and the type of `like`.

    On the grid of `like` its geometry fields are written as they were. On another grid the sform becomes `affine`, the
    qform is carried over with it, and sizes follow; codes stay (with both codes 0 only the voxel sizes can be stored).
    Header extensions and MGH tags are not copied: they may hold patient data.

    Type on disk: that of `like`. Floating types are stored as they are. For integer types the values are rounded to
    the steps that `like` used (1 where it had no `scl_slope`) if these hold the whole range and either make at least
    `MIN_LEVELS` levels of it (half of the type's levels for 8 bits) or hold every value as it is, a mask for example;
    else a new `scl_slope` spreads the range over the type's codes, at most `MAX_CODE` to a side of 0, and 0 stays 0
    except beside negative values in an unsigned type. Nothing is clipped. MGH has no scaling, so there such data become
    float32, as do types that MGH lacks.

    The bytes depend on the arguments only: gzip carries neither a time nor a name.

    Args:
        path: the output; `.nii`, `.nii.gz`, `.mgh` or `.mgz` chooses the format.
        data: shape (i, j, k), finite real numbers.
        affine: (4, 4), voxel index of `data` to mm, RAS+.
        like: the scan whose header is kept; another format gets a plain header with scanner coordinates.

    Raises:
        UsageError: the suffix is not known.
        ValueError: `data` is not 3-D and finite, or `affine` is not 4 x 4.
        TryAgainLater: the disk is full or the path cannot be written.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix is None:
        raise UsageError(f"{path}: unknown kind of image; expected a name that ends in {', '.join(SUFFIXES)}")
    if data.ndim != 3 or np.shape(affine) != (4, 4) or not np.isfinite([data.min(), data.max()]).all():
        raise ValueError("write_scan takes finite data of shape (i, j, k) and an affine of shape (4, 4)")
    header = _header_like(suffix, data.shape, np.asarray(affine, dtype=np.float64), like)
    slope, inter = _set_storage(header, data, like)
    head, foot = _blocks(header)
    with atomic_write(path) as temporary, create_binary(temporary, pack=suffix in PACKED) as stream:
        stream.write(head)
        _write_voxels(stream, data, header.get_data_dtype(), slope, inter)
        stream.write(foot)


def without_window(like: Scan) -> Scan:
    """The scan with no display window in its header: what a map of other values is written like."""
    header = like.header.copy()
    if is_nifti(header):
        header["cal_min"] = header["cal_max"] = 0  # "not set"
    return replace(like, header=header)


def _header_like(suffix: str, shape: tuple[int, ...], affine: NDArray[np.float64], like: Scan) -> Any:
    """Return a header for the asked format and grid: a copy of `like`'s, or a plain one."""
    mgh = suffix in MGH
    if is_nifti(like.header) != mgh:
        header = like.header.copy()
        moved = shape != like.data.shape or not np.array_equal(affine, like.affine)
    else:
        header, moved = _plain_header(mgh, like), True
    if moved:
        (_set_mgh_grid if mgh else _set_nifti_grid)(header, shape, affine, like.affine)
    if mgh:
        header["dims"] = (*shape, 1)
    else:
        header["dim"] = (3, *shape, 1, 1, 1, 1)
        header["vox_offset"] = len(header.binaryblock) + 4
    return header


def _plain_header(mgh: bool, like: Scan) -> Any:
    """Return a header of the other format with scanner coordinates on the grid of `like`."""
    from nibabel.freesurfer.mghformat import MGHHeader
    from nibabel.nifti1 import Nifti1Header

    make: Any = MGHHeader if mgh else Nifti1Header
    header = make()
    if not mgh:
        header.set_xyzt_units("mm")
        header.set_sform(like.affine, 1)
        header.set_qform(like.affine, 1)
        if corner_distance(like.affine, header.get_qform(), like.data.shape) > CONFLICT_MM:
            header["qform_code"] = 0  # a qform cannot hold shears
    return header


def _set_nifti_grid(
    header: Any, shape: tuple[int, ...], affine: NDArray[np.float64], before: NDArray[np.float64]
) -> None:
    """Move the sform onto `affine`, and the qform by as much, keeping their codes."""
    if header["sform_code"] > 0:
        header.set_sform(affine, int(header["sform_code"]))
    if header["qform_code"] > 0:
        header.set_qform(header.get_qform() @ np.linalg.inv(before) @ affine, int(header["qform_code"]))
    else:
        header["pixdim"][1:4] = edge_lengths(affine)
    if shape != tuple(header["dim"][1:4]):  # the order of acquisition is that of the slices before
        for name in ("slice_start", "slice_end", "slice_code", "slice_duration"):
            header[name] = 0


def _set_mgh_grid(
    header: Any, shape: tuple[int, ...], affine: NDArray[np.float64], _before: NDArray[np.float64]
) -> None:
    """Store a transform the way MGH does: voxel sizes, directions and the position of the centre."""
    size = np.array(edge_lengths(affine))
    header["delta"] = size
    header["Mdc"] = (affine[:3, :3] / size).T
    header["Pxyz_c"] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]


def _blocks(header: Any) -> tuple[bytes, bytes]:
    """Return the bytes before the voxels and those after them."""
    block: bytes = header.binaryblock
    if is_nifti(header):
        return block + bytes(4), b""  # "no extensions"
    return block[:MGH_HEADER_BYTES].ljust(MGH_VOXELS_AT, b"\0"), block[MGH_HEADER_BYTES:]


def _set_storage(header: Any, data: NDArray[Any], like: Scan) -> tuple[float, float]:
    """Set the type on disk and its scaling by the rule of `write_scan`; return slope and intercept."""
    from nibabel.freesurfer.mghformat import MGHError

    try:
        header.set_data_dtype(like.dtype)
    except MGHError:
        header.set_data_dtype(np.float32)
    dtype = header.get_data_dtype()
    slope, inter = steps_for(data, dtype, *scaling_of(like.header)) if dtype.kind in "iu" else (1.0, 0.0)
    if is_nifti(header):
        header["scl_slope"], header["scl_inter"] = slope, inter
    elif (slope, inter) != (1.0, 0.0):
        header.set_data_dtype(np.float32)
        return 1.0, 0.0
    return slope, inter


def steps_for(data: NDArray[Any], dtype: np.dtype[Any], slope: float, inter: float) -> tuple[float, float]:
    """Keep the given steps where they hold the values finely enough, else spread the range over the type."""
    info, low, high = np.iinfo(dtype), float(data.min()), float(data.max())
    first, last = sorted(round((value - inter) / slope) for value in (low, high))
    enough = min(MIN_LEVELS, (int(info.max) - int(info.min)) // 2)
    if info.min <= first and last <= info.max and (last - first >= enough or _on_steps(data, slope, inter)):
        return slope, inter
    inter = 0.0 if low < 0 and dtype.kind == "i" else low  # what code 0 stands for
    reach = max(high - inter, inter - low) / min(int(info.max), MAX_CODE)
    return max(reach, float(np.finfo(np.float32).tiny)), inter  # a slope of 0 would mean no scaling


def _on_steps(data: NDArray[Any], slope: float, inter: float) -> bool:
    """Say whether every value is one of the steps already, but for the rounding of float32."""
    rounding = float(np.finfo(np.float32).eps * np.abs(data).max()) / abs(slope)
    codes = ((data[..., k].astype(np.float64) - inter) / slope for k in range(data.shape[2]))
    return all(np.abs(plane - np.rint(plane)).max() <= rounding for plane in codes)


def _write_voxels(stream: BinaryIO, data: NDArray[Any], dtype: np.dtype[Any], slope: float, inter: float) -> None:
    """Write slice by slice in Fortran order, so that no second copy of the volume is made."""
    for k in range(data.shape[2]):
        plane = data[..., k]
        if dtype.kind in "iu":
            plane = np.rint((plane.astype(np.float64) - inter) / slope)
        stream.write(plane.astype(dtype).tobytes(order="F"))
