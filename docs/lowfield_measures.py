"""What docs/lowfield.py measures on an axial slice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
#: First and last + 1 voxel along i (front to back), then along j, on one axial slice.
Box = tuple[int, int, int, int]

#: Length of the level parts at both ends of an edge's profile, mm.
PLATEAU = 4.0


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Where to measure on an image. The edge is crossed along i and averaged along j."""

    white_matter: Box
    lesion: Box
    surround: Box
    edge: Box


def inside(image: Array, box: Box) -> Array:
    """The voxels of a box."""
    return image[box[0] : box[1], box[2] : box[3]]


def rise(profile: Array, spacing: float) -> float | None:
    """Distance in mm over which a profile goes from 10 to 90 % of the step between its ends; None where it does not.

    An edge blurred by a Gaussian of standard deviation s rises over 2.563 s.
    """
    level = max(1, round(PLATEAU / spacing))
    start, end = profile[:level].mean(), profile[-level:].mean()
    if start == end:
        return None
    part = (profile - start) / (end - start)
    upper = int(np.argmax(part >= 0.9))
    below = np.flatnonzero(part[:upper] <= 0.1)
    if not below.size:
        return None
    lower = int(below[-1])
    ten = lower + (0.1 - part[lower]) / (part[lower + 1] - part[lower])
    ninety = upper - (part[upper] - 0.9) / (part[upper] - part[upper - 1])
    return float(ninety - ten) * spacing


def measure(image: Array, boxes: Boxes, *, spacing: float) -> dict[str, float | None]:
    """All measures of one axial slice; deviations are parts of the white matter's mean, the contrast of the surround's.

    Args:
        image: (i, j), any unit.
        boxes: on this image.
        spacing: voxel size in plane, mm.
    """
    white = inside(image, boxes.white_matter)
    surround = float(inside(image, boxes.surround).mean())
    figures = {
        "white_matter": float(white.std() / white.mean()),
        "lesion": float(inside(image, boxes.lesion).std() / white.mean()),
        "contrast": float(inside(image, boxes.lesion).mean()) / surround - 1,
        "rise": rise(inside(image, boxes.edge).mean(axis=1), spacing),
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()}


def background(image: Array, boxes: Boxes, outside: Box) -> float:
    """Standard deviation in a box outside the head, a part of the white matter's mean."""
    return round(float(inside(image, outside).std() / inside(image, boxes.white_matter).mean()), 4)


def slice_correlations(volume: Array, outside: Box) -> dict[str, float]:
    """Correlation of a box outside the head between slices of a scan, by "first-second" slice counted from 1."""
    lines = [inside(volume[..., k], outside).ravel() for k in range(volume.shape[2])]
    pairs = [(k, k + apart) for apart in (1, 2) for k in range(len(lines) - apart)]
    return {f"{a + 1}-{b + 1}": round(float(np.corrcoef(lines[a], lines[b])[0, 1]), 2) for a, b in pairs}
