"""What a data set says of each of its slices, as plain numbers: classic MR has one slice, Enhanced MR a stack.

C.7.6.2 image plane, C.7.6.16 multi-frame functional groups. Where an attribute is missing in the functional groups it
is looked for at the top, and a missing orientation or position in the retired tags of ACR-NEMA.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.volume import MAX_VOXELS

#: Retired (0020,0035) and (0020,0030), which some consoles still write: the numbers of their successors.
RETIRED = {"ImageOrientationPatient": 0x00200035, "ImagePositionPatient": 0x00200030}
#: Cosines of a row and a column are rounded on their way; further than this from unit length they are something else.
COSINES = 1e-2
#: What tells the volumes of a series apart, and where: functional group and attribute.
_VOLUMES = {
    "echo time": [("MREchoSequence", "EffectiveEchoTime"), ("MREchoSequence", "EchoTime")],
    "time": [("FrameContentSequence", "TemporalPositionIndex"), ("", "TemporalPositionIdentifier")],
    "image type": [("MRImageFrameTypeSequence", "FrameType"), ("", "ImageType")],
    "complex component": [("MRImageFrameTypeSequence", "ComplexImageComponent")],
    "inversion time": [("", "InversionTime")],
    "b-value": [("MRDiffusionSequence", "DiffusionBValue")],
    "acquisition": [("FrameContentSequence", "FrameAcquisitionNumber"), ("", "AcquisitionNumber")],
    "stack": [("FrameContentSequence", "StackID")],
}
_TROUBLE = "expected an MR image with its place in space: export the scan again"


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice.

    Attributes:
        position: of the first voxel's centre, LPS, mm.
        axes: unit vectors (2, 3), LPS: along a row (with growing column index), along a column.
        spacing: between columns, between rows, mm.
        shape: columns, rows.
        distance: between slices as the header has it, mm; None where it does not say.
        volume: what tells the volumes of one series apart, by attribute.
        slope: of the rescaling.
        intercept: of the rescaling.
    """

    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    distance: float | None
    volume: dict[str, str]
    slope: float
    intercept: float


def planes_of(dataset: Any) -> list[Plane]:
    """The slices of one file in the order of its frames; call it under `refusing`.

    Raises:
        InputRefused: no image, colours, too many voxels, or a slice whose place is missing or senseless; the message
            names no file.
    """
    shape = _shape(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if min(frames, *shape) < 1 or frames * math.prod(shape) > MAX_VOXELS:
        raise InputRefused(
            f"the header promises {frames} x {shape[1]} x {shape[0]} voxels; expected 1 to {MAX_VOXELS}: export again"
        )
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not groups and frames == 1:
        return [_plane([dataset], shape)]
    if len(groups) != frames:
        raise InputRefused(
            f"{frames} frames with the places of {len(groups)}; expected functional groups for every frame: "
            "export the scan as Enhanced MR or as one file a slice"
        )
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    return [_plane([frame, *shared, dataset], shape) for frame in groups]


def is_multi_frame(dataset: Any) -> bool:
    """Whether the slices' places stand in functional groups, whatever class the file claims."""
    return bool(dataset.get("PerFrameFunctionalGroupsSequence"))


def _shape(dataset: Any) -> tuple[int, int]:
    shades = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or shades != "MONOCHROME2":
        raise InputRefused("its pixels are colours or inverted; expected MONOCHROME2: export it as grey values")
    if dataset.get("ModalityLUTSequence"):
        raise InputRefused("its values go through a modality look-up table; expected a rescaling: export it again")
    return int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)


def find(places: list[Any], group: str, name: str) -> Any:
    """An attribute from the functional group of the first of `places` that has it, or from a data set itself."""
    for place in places:
        (holder, *_) = place.get(group) or [{}]
        for value in (holder.get(name), place.get(name), _retired(place, name)):
            if value is not None and value != "":
                return value
    return None


def _retired(place: Any, name: str) -> Any:
    tag = RETIRED.get(name)
    return None if tag is None or tag not in place else place[tag].value


def _plane(places: list[Any], shape: tuple[int, int]) -> Plane:
    position = _numbers(find(places, "PlanePositionSequence", "ImagePositionPatient"), 3, "position")
    axes = _numbers(find(places, "PlaneOrientationSequence", "ImageOrientationPatient"), 6, "orientation").reshape(2, 3)
    rows, columns = _numbers(find(places, "PixelMeasuresSequence", "PixelSpacing"), 2, "pixel spacing").tolist()
    if np.abs(axes @ axes.T - np.eye(2)).max() > COSINES:
        raise InputRefused(f"its rows and columns are not at right angles or not of unit length; {_TROUBLE}")
    distance = find(places, "PixelMeasuresSequence", "SpacingBetweenSlices")
    scaling = "PixelValueTransformationSequence"
    slope, intercept = find(places, scaling, "RescaleSlope"), find(places, scaling, "RescaleIntercept")
    return Plane(
        position=position,
        axes=axes / np.linalg.norm(axes, axis=1, keepdims=True),
        spacing=(columns, rows),
        shape=shape,
        distance=None if distance is None else float(distance),
        volume=_volume(places),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def _volume(places: list[Any]) -> dict[str, str]:
    """The attributes by which the volumes of one series differ, as text for comparing: never print it."""
    return {name: str([find(places, group, name) for group, name in where]) for name, where in _VOLUMES.items()}


def _numbers(value: Any, count: int, what: str) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(number) for number in value])
    except (TypeError, ValueError):
        numbers = np.array([])
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputRefused(f"no {what} of {count} numbers; {_TROUBLE}")
    return numbers
