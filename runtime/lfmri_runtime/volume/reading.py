"""Reading a scan: the header first, then the voxels, then the rest of the file, which checks gzip's checksum."""

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import open_binary, read_up_to
from lfmri_runtime.volume.checks import check_dtype, check_grid, check_signal, check_spacing, check_values, read_affine
from lfmri_runtime.volume.scan import (
    MGH,
    MGH_HEADER_BYTES,
    MGH_VOXELS_AT,
    PACKED,
    SUFFIXES,
    Scan,
    scaling_of,
    suffix_of,
)

MAX_EXTRA_BYTES = 64 * 1024**2  # header extensions before the voxels, padding or tags after them
_QUIET = logging.Logger("lfmri.nibabel", level=logging.CRITICAL + 1)  # nibabel's repairs stay off stderr


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
    scan = _read(Path(path))
    check_values(scan.data, scan.source)
    return scan


def read_mask(path: Path) -> Scan:
    """Read a mask as `read_scan` reads a scan, but for one thing: it may cover the whole volume.

    Raises:
        InputRefused: as `read_scan`; of constant voxels only zeros.
    """
    mask = _read(Path(path))
    check_signal(mask.data, mask.source)
    return mask


def _read(path: Path) -> Scan:
    """Everything of `read_scan` but the check of the values."""
    unpack = _checked_suffix(path) in PACKED
    notes: list[str] = []
    try:
        with open_binary(path, unpack=unpack) as stream:
            header = _read_header(stream, path, notes)
            affine = read_affine(header, path, notes)
            data = _read_voxels(stream, header, path)
            header = _read_rest(stream, header, path)
    except EOFError as error:
        raise InputRefused(f"{path}: the compressed data ends too early; copy or download the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputRefused(f"{path}: not gzip or damaged; expected valid gzip data; copy the file again") from error
    except OSError as error:
        raise InputRefused(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error
    dtype = header.get_data_dtype().newbyteorder("=")
    return Scan(data=data, affine=affine, dtype=dtype, source=path, notes=tuple(notes), header=header)


def _checked_suffix(path: Path) -> str:
    """Return the suffix of a regular file of a known kind."""
    suffix = suffix_of(path)
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

    read = _read_mgh_header if suffix_of(path) in MGH else _read_nifti_header
    try:
        header = read(stream, path, notes)
        check_dtype(path, header.get_data_dtype())
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
    check_grid(path, dim[:axes])
    check_spacing(path, header["pixdim"][1:4])
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

    block = read_up_to(stream, MGH_VOXELS_AT)
    if len(block) < MGH_VOXELS_AT or block[:4] != b"\0\0\0\1":
        raise InputRefused(f"{path}: not an MGH image of version 1; convert it to .nii.gz")
    make: Any = MGHHeader
    header = make(bytes(block[:MGH_HEADER_BYTES]), check=False)
    check_grid(path, [int(size) for size in header["dims"]])
    check_spacing(path, header["delta"])
    if block[28:30] == b"\0\0":  # goodRASFlag
        notes.append("the header gives no orientation; coronal slices of 1 mm voxels were assumed, as FreeSurfer does")
    return header


def _read_voxels(stream: BinaryIO, header: Any, path: Path) -> NDArray[np.float32]:
    """Read the voxels slice by slice of scaling, so that only the file's bytes and the result are held."""
    shape, dtype = header.get_data_shape()[:3], header.get_data_dtype()
    expected = math.prod(map(int, shape)) * dtype.itemsize
    read = read_up_to(stream, expected)
    if len(read) < expected:
        raise InputRefused(f"{path}: cut off: {len(read)} of {expected} bytes of voxels; copy the file again")
    raw = np.frombuffer(read, dtype=dtype).reshape(shape, order="F")
    slope, inter = scaling_of(header)
    data = np.empty(shape, dtype=np.float32, order="F")
    with np.errstate(all="ignore"):  # what does not fit float32 becomes infinite and is refused
        for k in range(shape[2]):
            data[..., k] = raw[..., k] * np.float64(slope) + inter
    return data


def _read_rest(stream: BinaryIO, header: Any, path: Path) -> Any:
    """Read to the end, which checks gzip's checksum, and take up MGH's footer (repetition time and its like)."""
    rest = read_up_to(stream, MAX_EXTRA_BYTES + 1)
    if len(rest) > MAX_EXTRA_BYTES:
        raise InputRefused(f"{path}: much more data follows the voxels than an image has; export the scan again")
    if suffix_of(path) in MGH:
        return type(header)(header.binaryblock[:MGH_HEADER_BYTES] + bytes(rest[:20]), check=False)
    return header
