"""The images of one series to volumes, and an enhanced volume back to the images' pixels."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.mrd import xml
from lfmri_runtime.mrd.geometry import orientation_of
from lfmri_runtime.mrd.wire import DATA_TYPES, MAGNITUDE, Image, ImageHeader
from lfmri_runtime.volume.checks import MIN_AXIS_VOXELS

Float32Array = NDArray[np.float32]

#: What an enhanced image carries in ImageProcessingHistory, and is known by when it comes again.
MARK = "LFMRI"
HISTORY = "ImageProcessingHistory"
#: The window shows intensities from 0 to this percentile.
WINDOW_PERCENTILE = 99.5


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
    header = images[0].header
    shape = (*header.matrix_size[:2], max(len(images), header.matrix_size[2]))
    if stacks > 1:
        return f"a series of {stacks} orientations is a localiser"
    if min(shape) < MIN_AXIS_VOXELS:
        return f"{' x '.join(map(str, shape))} voxels are too few; expected {MIN_AXIS_VOXELS} or more along every axis"
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


def unstack(volume: Float32Array, order: tuple[int, ...], data_type: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Pixels of each image, (z, y, x), in the order in which the images came.

    Args:
        volume: (x, y, slice).
        order: as `stack` took it.
        data_type: key of DATA_TYPES; integers are rounded, and clipped to what they hold.

    Yields:
        position of the image, pixels.
    """
    dtype = DATA_TYPES[data_type]
    slices = volume.transpose(2, 1, 0)
    depth = len(slices) // len(order)
    for place, number in sorted(enumerate(order), key=lambda pair: pair[1]):
        pixels = slices[place * depth : (place + 1) * depth]
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            pixels = np.clip(np.rint(pixels.astype(np.float64)), limits.min, limits.max)
        yield number, np.ascontiguousarray(pixels).astype(dtype)


def window(volume: Float32Array) -> tuple[str, str]:
    """Centre and width of the display's window, as whole numbers where that loses nothing to see."""
    high = float(np.percentile(volume, WINDOW_PERCENTILE))
    return tuple(f"{value:.0f}" if high >= 100 else f"{value:.6g}" for value in (high / 2, high))  # type: ignore[return-value]


def digest(images: list[Image]) -> str:
    """The volume's sha256: of headers and pixels, in the order in which they came."""
    total = hashlib.sha256()
    for image in images:
        total.update(image.header.raw)
        total.update(image.pixels)
    return total.hexdigest()
