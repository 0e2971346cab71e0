"""An enhanced volume back to images: the original's headers, other pixels, and attributes that say what was done."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.mrd import xml
from lfmri_runtime.mrd.image import DATA_TYPES, FLOAT32, Image
from lfmri_runtime.mrd.volume import HISTORY, MARK

Float32Array = NDArray[np.float32]

#: An enhanced series has the original's index and this; its uncertainty twice this. Scanners count up from 0 or 1.
SERIES_STEP = 1000
UNCERTAINTY = "standard deviation"
#: The window shows intensities from 0 to this percentile.
WINDOW_PERCENTILE = 99.5


def answers(
    images: list[Image], order: tuple[int, ...], enhanced: Enhanced, *, bundle: Bundle, label: str, uncertainty: bool
) -> Iterator[tuple[bytes, ...]]:
    """Contents of the messages: the enhanced series, then its uncertainty in float32, which integers would round away.

    Args:
        images: the originals, in the order in which they came.
        order: as `stack` took it.
        enhanced: on the scan's own grid.
        bundle: that enhanced it, for the attributes.
        label: the site's text.
        uncertainty: whether the standard deviation leaves too.
    """
    header = images[0].header
    series: list[tuple[Float32Array, int, str]] = [(enhanced.mean, header.data_type, label)]
    if uncertainty and enhanced.std is not None:
        series.append((enhanced.std, FLOAT32, f"{label}, {UNCERTAINTY}"))
    for step, (values, data_type, text) in enumerate(series, start=1):
        meta = _meta(values, bundle, text)
        index = (header.series + step * SERIES_STEP) % (1 << 16)
        for number, pixels in unstack(values, order, data_type):
            image = images[number]
            history = (*xml.meta_values(image.attributes, HISTORY), *meta[HISTORY])
            attributes = xml.with_meta(image.attributes, {**meta, HISTORY: history})
            yield image.answer(pixels, data_type=data_type, series=index, attributes=attributes)


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


def _meta(values: Float32Array, bundle: Bundle, label: str) -> dict[str, tuple[str, ...]]:
    centre, width = window(values)
    return {
        "DataRole": ("Image",),
        HISTORY: (MARK, f"{bundle.contract.name} {bundle.contract.version}", f"sha256 {bundle.sha256}"),
        "Keep_image_geometry": ("1",),
        "WindowCenter": (centre,),
        "WindowWidth": (width,),
        "SequenceDescriptionAdditional": (label,),
    }
