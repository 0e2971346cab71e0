"""One 3-D scan on disk: read with every check that the network's input needs, written back with its geometry.

NIfTI-1, NIfTI-2 (`.nii`, `.nii.gz`) and FreeSurfer's MGH (`.mgh`, `.mgz`). The header is checked before memory is
taken for the voxels. No text field of a header is ever put into a message: it may name a patient.

Field names and rules: NIfTI-1 standard, nifti1.h, https://nifti.nimh.nih.gov/nifti-1; MGH format,
https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat.
"""

import gzip
import itertools
import logging
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import atomic_write, create_binary, open_binary, read_up_to

SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
_PACKED = (".nii.gz", ".mgz")
_MGH = (".mgh", ".mgz")
MAX_VOXELS = 512**3
MAX_EXTRA_BYTES = 64 * 1024**2  # header extensions before the voxels, padding or tags after them
MIN_AXIS_VOXELS = 2  # clinical stacks with very few slices are real; a single slice has no thick axis
VOXEL_MM = (0.05, 50.0)
FARTHEST_MM = 1e5  # float32 transforms place voxels to 0.01 mm up to here
CONFLICT_MM = 1e-2  # float32 transforms of one position agree far better than this over a head
MIN_LEVELS = 1000  # an integer image with fewer steps than this loses contrast that the network made
MAX_CODE = 65535  # finer steps than 16 bits would only store noise
_MGH_HEADER_BYTES = 90  # the fields; a footer of 20 bytes (repetition time and its like) follows the voxels
_MGH_VOXELS_AT = 284
_DTYPE_WORDS = {"c": "complex numbers", "V": "colours or of a type not known here", "f": "floats of more than 64 bits"}
_QUIET = logging.Logger("lfmri.nibabel", level=logging.CRITICAL + 1)  # nibabel's repairs stay off stderr


@dataclass(frozen=True, eq=False)
class Scan:
    """A 3-D scan as its file holds it.

    Attributes:
        data: voxel values, float32, shape (i, j, k) in the file's voxel order, finite, not constant; scaling applied.
        affine: (4, 4) float64, voxel index to mm, x to the right, y to the front, z to the head (RAS+).
        dtype: the type on disk, in native byte order.
        source: the path that it was read from.
        notes: one line each for the user about what was assumed.
        header: nibabel's header; its class is the format and its fields are kept by `write_scan`. Holds free text:
            never print it.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    source: Path
    notes: tuple[str, ...] = ()
    header: Any = field(default=None, repr=False)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Voxel edge lengths along the three voxel axes, mm."""
        return _voxel_size(self.affine)


def read_scan(path: Path) -> Scan:
    """Read one 3-D scan and refuse what cannot be enhanced.

    A 4-D file with one volume is read as 3-D. NIfTI: the sform is used where its code is set, else the qform, else
    voxel axes along x, y, z (method 1 of the standard); the last case, and an sform and a qform that disagree, are
    noted. Header extensions are skipped: they may hold DICOM data of the patient.

    Args:
        path: a `.nii`, `.nii.gz`, `.mgh` or `.mgz` file; the suffix counts in any case.

    Returns:
        The scan.

    Raises:
        InputRefused: the file is missing, unreadable, damaged or cut off; its header makes no sense or promises more
            than `MAX_VOXELS`; it is not one 3-D volume of real numbers; its geometry is unusable; its voxels are
            constant or not all finite.
    """
    path = Path(path)
    unpack = _checked_suffix(path) in _PACKED
    notes: list[str] = []
    try:
        with open_binary(path, unpack=unpack) as stream:
            header = _read_header(stream, path, notes)
            affine = _read_affine(header, path, notes)
            data = _read_voxels(stream, header, path)
            header = _read_rest(stream, header, path)
    except EOFError as error:
        raise InputRefused(f"{path}: the compressed data ends too early; copy or download the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputRefused(f"{path}: not gzip or damaged; expected valid gzip data; copy the file again") from error
    except OSError as error:
        raise InputRefused(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error
    _check_values(data, path)
    dtype = header.get_data_dtype().newbyteorder("=")
    return Scan(data=data, affine=affine, dtype=dtype, source=path, notes=tuple(notes), header=header)


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
    suffix = _suffix(path)
    if suffix is None:
        raise UsageError(f"{path}: unknown kind of image; expected a name that ends in {', '.join(SUFFIXES)}")
    if data.ndim != 3 or np.shape(affine) != (4, 4) or not np.isfinite([data.min(), data.max()]).all():
        raise ValueError("write_scan takes finite data of shape (i, j, k) and an affine of shape (4, 4)")
    header = _header_like(suffix, data.shape, np.asarray(affine, dtype=np.float64), like)
    slope, inter = _set_storage(header, data, like)
    head, foot = _blocks(header)
    with atomic_write(path) as temporary, create_binary(temporary, pack=suffix in _PACKED) as stream:
        stream.write(head)
        _write_voxels(stream, data, header.get_data_dtype(), slope, inter)
        stream.write(foot)


def _is_nifti(header: Any) -> bool:
    return "pixdim" in header


# Reading


def _suffix(path: Path) -> str | None:
    """Return the known suffix that a path ends in, in lower case, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _checked_suffix(path: Path) -> str:
    """Return the suffix of a regular file of a known kind."""
    suffix = _suffix(path)
    try:
        if path.is_dir():
            raise InputRefused(f"{path}: a folder; expected one image file; give a file in it")
        if not path.exists():
            raise InputRefused(f"{path}: no such file; expected an image; check the path")
        if suffix is None or not path.is_file():
            raise InputRefused(f"{path}: not an image; expected a regular file that ends in {', '.join(SUFFIXES)}")
    except OSError as error:
        raise InputRefused(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error
    return suffix


def _read_header(stream: BinaryIO, path: Path, notes: list[str]) -> Any:
    """Read and check the header, and leave the stream at the first voxel."""
    from nibabel.spatialimages import HeaderDataError

    read = _read_mgh_header if _suffix(path) in _MGH else _read_nifti_header
    try:
        header = read(stream, path, notes)
        _check_dtype(path, header.get_data_dtype())
        header.check_fix(logger=_QUIET, error_level=40)
        header.get_slope_inter()
    except (HeaderDataError, KeyError, ValueError, OverflowError) as error:
        raise InputRefused(f"{path}: its header holds values that make no sense; export the scan again") from error
    return header


def _read_nifti_header(stream: BinaryIO, path: Path, notes: list[str]) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = read_up_to(stream, 348)
    second = block[4:8] == b"n+2\0"
    block += read_up_to(stream, 540 - 348) if second else b""
    if len(block) != (540 if second else 348) or not (second or block[344:348] == b"n+1\0"):
        raise InputRefused(f"{path}: not a single-file NIfTI image (wrong magic bytes); convert it to .nii.gz")
    make: Any = Nifti2Header if second else Nifti1Header
    header = make(bytes(block), check=False)
    axes, *dim = [int(size) for size in header["dim"]]
    if not 1 <= axes <= 7:
        raise InputRefused(f"{path}: {axes} axes in the header; expected 3; export the scan again")
    _check_grid(path, dim[:axes])
    _check_spacing(path, header["pixdim"][1:4])
    if int(header["xyzt_units"]) & 7 in (1, 3):
        notes.append("the header gives its lengths in metres or micrometres; they were read as mm")
    _skip_extensions(stream, float(header["vox_offset"]) - len(block), path)
    return header


def _skip_extensions(stream: BinaryIO, count: float, path: Path) -> None:
    if not 4 <= count <= MAX_EXTRA_BYTES:
        raise InputRefused(f"{path}: its voxels start {count:g} bytes after the header; expected 4 or a little more")
    read_up_to(stream, int(count))


def _read_mgh_header(stream: BinaryIO, path: Path, notes: list[str]) -> Any:
    from nibabel.freesurfer.mghformat import MGHHeader

    block = read_up_to(stream, _MGH_VOXELS_AT)
    if len(block) < _MGH_VOXELS_AT or block[:4] != b"\0\0\0\1":
        raise InputRefused(f"{path}: not an MGH image of version 1; convert it to .nii.gz")
    make: Any = MGHHeader
    header = make(bytes(block[:_MGH_HEADER_BYTES]), check=False)
    _check_grid(path, [int(size) for size in header["dims"]])
    _check_spacing(path, header["delta"])
    if block[28:30] == b"\0\0":  # goodRASFlag
        notes.append("the header gives no orientation; coronal slices of 1 mm voxels were assumed, as FreeSurfer does")
    return header


def _check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputRefused(
            f"{path}: voxels are {_DTYPE_WORDS.get(dtype.kind, 'of an unknown type')}; "
            "expected real numbers of 64 bits at most; convert it, to float32 for example"
        )


def _check_grid(path: Path, shape: list[int]) -> None:
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


def _check_spacing(path: Path, spacing: NDArray[Any]) -> None:
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        said = " x ".join(f"{size:g}" for size in spacing.tolist())
        raise InputRefused(f"{path}: voxel sizes of {said} in the header; expected positive mm; export the scan again")


def _read_affine(header: Any, path: Path, notes: list[str]) -> NDArray[np.float64]:
    """Choose the transform from voxels to mm and refuse one that is no geometry of a scan."""
    with np.errstate(all="ignore"):  # broken numbers are refused below
        try:
            affine = np.asarray(
                _nifti_affine(header, notes) if _is_nifti(header) else header.get_affine(), dtype=np.float64
            )
        except ValueError as error:
            raise InputRefused(f"{path}: the qform in its header is no rotation; export the scan again") from error
        size = _voxel_size(affine)
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
    return affine


def _nifti_affine(header: Any, notes: list[str]) -> NDArray[np.float64]:
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_sform and not has_qform:
        notes.append("the header gives no orientation; voxel axes were assumed to run right, front, head (RAS)")
        return np.diag([*header["pixdim"][1:4].astype(np.float64), 1.0])
    qform: NDArray[np.float64] = header.get_qform()
    if not has_sform:
        return qform
    sform: NDArray[np.float64] = header.get_sform()
    apart = _distance(sform, qform, header.get_data_shape()[:3]) if has_qform else 0.0
    if not apart <= CONFLICT_MM:
        notes.append(f"sform and qform in the header differ by up to {apart:.3g} mm; the sform was used")
    return sform


def _distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance, mm, between two transforms' positions of the volume's corners."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def _voxel_size(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    i, j, k = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return i, j, k


def _read_voxels(stream: BinaryIO, header: Any, path: Path) -> NDArray[np.float32]:
    """Read the voxels slice by slice of scaling, so that only the file's bytes and the result are held."""
    shape, dtype = header.get_data_shape()[:3], header.get_data_dtype()
    expected = math.prod(map(int, shape)) * dtype.itemsize
    read = read_up_to(stream, expected)
    if len(read) < expected:
        raise InputRefused(f"{path}: cut off: {len(read)} of {expected} bytes of voxels; copy the file again")
    raw = np.frombuffer(read, dtype=dtype).reshape(shape, order="F")
    slope, inter = _scaling(header)
    data = np.empty(shape, dtype=np.float32, order="F")
    with np.errstate(all="ignore"):  # what does not fit float32 becomes infinite and is refused
        for k in range(shape[2]):
            data[..., k] = raw[..., k] * np.float64(slope) + inter
    return data


def _scaling(header: Any) -> tuple[float, float]:
    slope, inter = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _read_rest(stream: BinaryIO, header: Any, path: Path) -> Any:
    """Read to the end, which checks gzip's checksum, and take up MGH's footer (repetition time and its like)."""
    rest = read_up_to(stream, MAX_EXTRA_BYTES + 1)
    if len(rest) > MAX_EXTRA_BYTES:
        raise InputRefused(f"{path}: much more data follows the voxels than an image has; export the scan again")
    if _suffix(path) in _MGH:
        return type(header)(header.binaryblock[:_MGH_HEADER_BYTES] + bytes(rest[:20]), check=False)
    return header


def _check_values(data: NDArray[np.float32], path: Path) -> None:
    broken = data.size - int(np.count_nonzero(np.isfinite(data)))
    if broken:
        raise InputRefused(f"{path}: {broken} of {data.size} voxels are NaN or infinite; set them to a number first")
    if not data.any():
        raise InputRefused(f"{path}: every voxel is zero; expected an image; check that the right file was given")
    if data.min() == data.max():
        raise InputRefused(f"{path}: every voxel has the same value; expected an image; check the file")


# Writing


def _header_like(suffix: str, shape: tuple[int, ...], affine: NDArray[np.float64], like: Scan) -> Any:
    """Return a header for the asked format and grid: a copy of `like`'s, or a plain one."""
    mgh = suffix in _MGH
    if _is_nifti(like.header) != mgh:
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
        if _distance(like.affine, header.get_qform(), like.data.shape) > CONFLICT_MM:
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
        header["pixdim"][1:4] = _voxel_size(affine)
    if shape != tuple(header["dim"][1:4]):  # the order of acquisition is that of the slices before
        for name in ("slice_start", "slice_end", "slice_code", "slice_duration"):
            header[name] = 0


def _set_mgh_grid(
    header: Any, shape: tuple[int, ...], affine: NDArray[np.float64], _before: NDArray[np.float64]
) -> None:
    """Store a transform the way MGH does: voxel sizes, directions and the position of the centre."""
    size = np.array(_voxel_size(affine))
    header["delta"] = size
    header["Mdc"] = (affine[:3, :3] / size).T
    header["Pxyz_c"] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]


def _blocks(header: Any) -> tuple[bytes, bytes]:
    """Return the bytes before the voxels and those after them."""
    block: bytes = header.binaryblock
    if _is_nifti(header):
        return block + bytes(4), b""  # "no extensions"
    return block[:_MGH_HEADER_BYTES].ljust(_MGH_VOXELS_AT, b"\0"), block[_MGH_HEADER_BYTES:]


def _set_storage(header: Any, data: NDArray[Any], like: Scan) -> tuple[float, float]:
    """Set the type on disk and its scaling by the rule of `write_scan`; return slope and intercept."""
    from nibabel.freesurfer.mghformat import MGHError

    try:
        header.set_data_dtype(like.dtype)
    except MGHError:
        header.set_data_dtype(np.float32)
    dtype = header.get_data_dtype()
    slope, inter = _steps(data, dtype, *_scaling(like.header)) if dtype.kind in "iu" else (1.0, 0.0)
    if _is_nifti(header):
        header["scl_slope"], header["scl_inter"] = slope, inter
    elif (slope, inter) != (1.0, 0.0):
        header.set_data_dtype(np.float32)
        return 1.0, 0.0
    return slope, inter


def _steps(data: NDArray[Any], dtype: np.dtype[Any], slope: float, inter: float) -> tuple[float, float]:
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
