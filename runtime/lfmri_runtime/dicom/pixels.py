"""Pixels of a file to slices in float32: only what needs no decoder beyond pydicom's own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from lfmri_runtime.dicom.planes import Plane
from lfmri_runtime.errors import InputRefused

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_BITS = (8, 16, 32)
#: Two bytes of run lengths stand for at most 128, PS3.5 G.3; what is no run takes 129/128 of its own length.
_LONGEST_RUN = 64
#: Run lengths have a header of 64 bytes a frame, item tags of 8 and an offset of 4.
_FRAME_BYTES = 128


def read_pixels(dataset: Any, planes: list[Plane]) -> list[NDArray[np.float32]]:
    """The file's slices, rescaled, (columns, rows) each; the data set is left without its pixels. Use `refusing`.

    Args:
        dataset: read with its pixels.
        planes: of the file, whose shapes are capped.

    Raises:
        InputRefused: no pixels, fewer than the header promises, compressed, not whole numbers of 8, 16 or 32 bits, or
            not in the lowest of them; the message names no file.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    if syntax not in (*_NATIVE, RLELossless):
        raise InputRefused("its pixels are compressed; expected uncompressed or RLE: decompress with gdcmconv --raw")
    bits = int(dataset.get("BitsAllocated") or 0)
    if "PixelData" not in dataset or bits not in _BITS:
        raise InputRefused(f"no pixels, or of {bits} bits; expected whole numbers of {', '.join(map(str, _BITS))} bits")
    stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
    # PS3.5 8.1.1; pydicom reads the lowest bits whatever HighBit is.
    if None not in (stored, high) and high != stored - 1:
        raise InputRefused(f"{stored} bits with HighBit {high}; expected BitsStored - 1: export the scan again")
    _check_length(len(dataset.PixelData), planes, bits // 8, native=syntax in _NATIVE)
    frames = pixel_array(dataset).reshape(len(planes), planes[0].shape[1], planes[0].shape[0])
    with np.errstate(all="ignore"):  # what does not fit float32 becomes infinite and is refused
        slices = [
            (frame.T * plane.slope + plane.intercept).astype(np.float32)
            for frame, plane in zip(frames, planes, strict=True)
        ]
    del dataset.PixelData
    return slices


def _check_length(found: int, planes: list[Plane], pixel_bytes: int, *, native: bool) -> None:
    """Compare what is there with what the header promises, before memory is taken for either."""
    expected = len(planes) * planes[0].shape[0] * planes[0].shape[1] * pixel_bytes
    if found < (expected if native else expected // _LONGEST_RUN):
        raise InputRefused(f"cut off: {found} bytes for {expected} of pixels; copy the file again")
    if not native and found > 2 * expected + _FRAME_BYTES * (len(planes) + 1):
        raise InputRefused(f"{found} bytes of run lengths for {expected} of pixels; export the scan again")
