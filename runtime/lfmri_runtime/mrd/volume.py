"""The images of one series to volumes."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.mrd import xml
from lfmri_runtime.mrd.geometry import orientation_of
from lfmri_runtime.mrd.image import DATA_TYPES, MAGNITUDE, Image, ImageHeader

Float32Array = NDArray[np.float32]

#: Fewer slices or a smaller matrix are no scan of a head (assumed; the DICOM node's bounds are the same).
MIN_SLICES = 4
MIN_MATRIX = 16
#: What an enhanced image carries in ImageProcessingHistory, and is known by when it comes again.
MARK = "LFMRI"
HISTORY = "ImageProcessingHistory"


def is_magnitude(header: ImageHeader) -> bool:
    """Whether an image takes part: a magnitude of one channel and real pixels. All others go back as they came."""
    real = DATA_TYPES[header.data_type].kind != "c"
    return real and header.image_type in MAGNITUDE and header.channels == 1 and min(header.matrix_size) > 0


def volumes(images: list[Image]) -> list[list[Image]]:
    """Split a series: one volume for each frame (average, contrast, phase, repetition, set) and each 3-D image."""
    groups: dict[tuple[object, ...], list[Image]] = {}
    for number, image in enumerate(images):
        header = image.header
        flat = header.matrix_size[2] == 1
        key = (header.frame, header.data_type, header.matrix_size, orientation_of(header), None if flat else number)
        groups.setdefault(key, []).append(image)
    return list(groups.values())


def reason_to_pass(images: list[Image], *, stacks: int) -> str | None:
    """Why the images of one volume go back as they came; None where they are to be enhanced.

    Args:
        images: of the volume.
        stacks: orientations in its series.
    """
    columns, rows, depth = images[0].header.matrix_size
    slices = max(len(images), depth)
    if stacks > 1:
        return f"a series of {stacks} orientations is a localiser"
    if slices < MIN_SLICES or min(columns, rows) < MIN_MATRIX:
        return f"{slices} slices of {columns} x {rows} are too small; expected {MIN_SLICES} of {MIN_MATRIX} or more"
    if any(MARK in xml.meta_values(image.attributes, HISTORY) for image in images):
        return "it is enhanced already"
    return None


def stack(images: list[Image], order: tuple[int, ...]) -> Float32Array:
    """The volume, (x, y, slice).

    Raises:
        InputRefused: values that are not finite in float32, or all the same.
    """
    with np.errstate(over="ignore"):  # what overflows is refused below
        slices = np.concatenate([images[n].array for n in order]).astype(np.float32)
    data = np.ascontiguousarray(slices.transpose(2, 1, 0))
    if not np.isfinite(data).all():
        raise InputRefused("voxels are NaN, infinite or beyond float32; expected finite numbers: check the sender")
    if data.min() == data.max():
        raise InputRefused("every voxel has the same value; expected an image: check the sender")
    return data


def digest(images: list[Image]) -> str:
    """The volume's sha256: of headers and pixels, in the order in which they came."""
    total = hashlib.sha256()
    for image in images:
        total.update(image.header.raw)
        total.update(image.pixels)
    return total.hexdigest()
