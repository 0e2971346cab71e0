"""Slices in any order to one stack: sorted along their normal, evenly spaced, one orientation, one volume."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.dicom.planes import Plane
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.volume import MAX_VOXELS

#: Directions that differ by more than this, and spacings by this share, are not one stack's: headers round to 1e-4.
SAME_DIRECTION = 1e-3
SAME_SPACING = 1e-3
#: Slices nearer than this, mm, are at one place.
SAME_PLACE = 1e-2
#: A slice may be this share of the slice distance away from its even place (assumed; rounding is far below).
UNEVEN = 0.1
#: From patient coordinates of DICOM to those of NIfTI.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def order_of(planes: Sequence[Plane]) -> list[int]:
    """Indices of the slices along the normal, the cross product of row and column.

    Raises:
        InputRefused: one slice, slices of several shapes or orientations, several volumes, or slices that are missing.
    """
    if len(planes) < 2:
        raise InputRefused("a single slice; expected 2 or more: give the whole series")
    first = planes[0]
    if math.prod(first.shape) * len(planes) > MAX_VOXELS:
        raise InputRefused(
            f"{len(planes)} slices of {first.shape[1]} x {first.shape[0]}; at most {MAX_VOXELS} voxels fit"
        )
    if any(plane.shape != first.shape for plane in planes):
        raise InputRefused("slices of several matrix sizes; expected one stack: give it alone")
    if any(np.abs(plane.axes - first.axes).max() > SAME_DIRECTION for plane in planes):
        raise InputRefused("slices in several orientations; expected one stack: a localiser is not enhanced")
    if any(not np.allclose(plane.spacing, first.spacing, rtol=SAME_SPACING) for plane in planes):
        raise InputRefused("slices of several pixel spacings; expected one stack: give it alone")
    distances = np.array([plane.position @ np.cross(*first.axes) for plane in planes])
    order = [int(index) for index in np.argsort(distances, kind="stable")]
    _check_distances(planes, order, np.diff(distances[order]))
    return order


def _check_distances(planes: Sequence[Plane], order: list[int], steps: NDArray[np.float64]) -> None:
    if steps.min() < SAME_PLACE:
        names = sorted(name for name in planes[0].volume if len({plane.volume[name] for plane in planes}) > 1)
        why = f"they differ in {', '.join(names)}" if names else "nothing tells them apart"
        raise InputRefused(f"several slices at one place ({why}); expected one volume: give one alone")
    positions = np.array([planes[index].position for index in order])
    even = positions[0] + np.linspace(0, 1, len(order))[:, None] * (positions[-1] - positions[0])
    if np.linalg.norm(positions - even, axis=1).max() > UNEVEN * steps.min():
        raise InputRefused(
            f"slices {steps.min():.4g} to {steps.max():.4g} mm apart; expected even distances along a line: "
            "send the whole series, and one stack alone"
        )


def affine_of(planes: Sequence[Plane]) -> NDArray[np.float64]:
    """Column, row and slice index to mm, RAS+, of slices in order; C.7.6.2.1.1, slice steps from the positions."""
    first, last = planes[0], planes[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.spacing[0]
    affine[:3, 1] = first.axes[1] * first.spacing[1]
    affine[:3, 2] = (last.position - first.position) / (len(planes) - 1)
    affine[:3, 3] = first.position
    return np.asarray(LPS_TO_RAS @ affine)
