"""Slices of volumes as JPEG pictures: grey with one common window, maps through a perceptual colour map.

Volumes are in RAS voxel order. A picture is turned so that rows and columns both run against the voxel axes, which is
the radiological convention: the patient's right is on the left, anterior and superior are up, and in the sagittal
plane the face looks left.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import missing_extra

Kind = Literal["image", "error", "uncertainty"]

#: JPEG quality; at 80 the artefacts of an 8-bit slice stay below what a screen shows.
QUALITY = 80
#: Base64 characters of all pictures together that a page should stay below.
MAX_CHARACTERS = 14_000_000
#: Characters per pixel to expect, from head scans at QUALITY; only the first guess of the stride hangs on it.
CHARACTERS_PER_PIXEL = 0.35
#: Share of the values, in percent, up to which the window reaches; the rest is clipped to white.
PERCENTILES: dict[Kind, float] = {"image": 99.9, "error": 99.5, "uncertainty": 99.5}
#: Equidistant sRGB colours per kind: grey; magma and viridis (Smith and van der Walt 2015, CC0).
COLOURS: dict[Kind, str] = {
    "image": "#000000 #ffffff",
    "error": "#000004 #140e36 #3b0f70 #641a80 #8c2981 #b73779 #de4968 #f7705c #fe9f6d #fecf92 #fcfdbf",
    "uncertainty": "#440154 #482475 #414487 #355f8d #2a788e #21918c #22a884 #44bf70 #7ad151 #bddf26 #fde725",
}

Window = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One volume of the page.

    Attributes:
        name: What stands over its pictures.
        volume: (i, j, k) in RAS voxel order, finite; all panels of a page share one grid.
        kind: `image` is shown in grey, `error` and `uncertainty` in colour; panels of a kind share a window.
    """

    name: str
    volume: NDArray[np.float32]
    kind: Kind = "image"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """How slices normal to one voxel axis lie on the screen; rows and columns run against their voxel axes."""

    name: str
    axis: int
    row_axis: int
    column_axis: int
    top: str
    bottom: str
    left: str
    right: str
    origin: str


#: In the order of the page.
PLANES = (
    Plane(name="Axial", axis=2, row_axis=1, column_axis=0, top="A", bottom="P", left="R", right="L", origin="bottom"),
    Plane(name="Coronal", axis=1, row_axis=2, column_axis=0, top="S", bottom="I", left="R", right="L", origin="back"),
    Plane(name="Sagittal", axis=0, row_axis=2, column_axis=1, top="S", bottom="I", left="A", right="P", origin="left"),
)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of one plane: every `stride`-th slice, their `indices`, and base64 JPEGs by panel and slice."""

    plane: Plane
    stride: int
    indices: tuple[int, ...]
    jpegs: tuple[tuple[str, ...], ...]


def find_windows(panels: Sequence[Panel]) -> dict[Kind, Window]:
    """Return the values shown as the first and the last colour, per kind that occurs, in the order of COLOURS.

    A window starts at 0 and ends at a high percentile of the kind's brightest volume; at 1 where that is not above 0.
    """
    windows: dict[Kind, Window] = {}
    for kind in COLOURS:
        highs = [float(np.percentile(panel.volume, PERCENTILES[kind])) for panel in panels if panel.kind == kind]
        if highs:
            windows[kind] = (0.0, max(highs) if max(highs) > 0.0 else 1.0)
    return windows


def draw(panels: Sequence[Panel], windows: Mapping[Kind, Window]) -> list[Pictures]:
    """Draw the slices of all panels in the three planes, as many as MAX_CHARACTERS allows.

    Args:
        panels: At least one, on one grid.
        windows: As `find_windows` returns them.

    Returns:
        One entry per plane of PLANES; every n-th slice, the middle one always among them.

    Raises:
        BackendMissing: Pillow is not installed.
    """
    pixels = sum(panel.volume.size for panel in panels) * len(PLANES)
    stride = max(1, math.ceil(pixels * CHARACTERS_PER_PIXEL / MAX_CHARACTERS))
    while True:
        drawn = [_draw_plane(panels, windows, plane, stride) for plane in PLANES]
        characters = sum(len(jpeg) for pictures in drawn for row in pictures.jpegs for jpeg in row)
        longest = max(len(pictures.indices) for pictures in drawn)
        if characters <= MAX_CHARACTERS or longest == 1:
            return drawn
        stride = max(stride + 1, math.ceil(stride * characters / MAX_CHARACTERS))


def _draw_plane(panels: Sequence[Panel], windows: Mapping[Kind, Window], plane: Plane, stride: int) -> Pictures:
    length = panels[0].volume.shape[plane.axis]
    indices = tuple(range(length // 2 % stride, length, stride))
    jpegs = []
    for panel in panels:
        lookup = colour_table(panel.kind)
        slices = (np.take(panel.volume, index, axis=plane.axis) for index in indices)
        jpegs.append(tuple(_jpeg(_colour(picture.T[::-1, ::-1], windows[panel.kind], lookup)) for picture in slices))
    return Pictures(plane=plane, stride=stride, indices=indices, jpegs=tuple(jpegs))


def colour_table(kind: Kind) -> NDArray[np.uint8]:
    """Return the colours of a kind as (256, 3) sRGB values, interpolated between those of COLOURS."""
    anchors = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOURS[kind].split()], np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    table: NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return table


def _colour(picture: NDArray[Any], window: Window, lookup: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w) values -> (h, w, 3) sRGB."""
    low, high = window
    share = np.clip((picture.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    coloured: NDArray[np.uint8] = lookup[np.rint(share * 255).astype(np.uint8)]
    return coloured


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    """(h, w, 3) sRGB -> base64 JPEG; grey pictures lose their colour channels, coloured ones keep all pixels."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("evaluate", "Pillow") from None
    grey = bool((pixels == pixels[..., :1]).all())
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=QUALITY, optimize=True, subsampling=0)
    return base64.b64encode(stream.getvalue()).decode("ascii")
