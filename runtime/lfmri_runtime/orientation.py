"""A scan's own voxel order and RAS order: nibabel's orientation arrays with types, imported when first used."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
Orientation = NDArray[np.float64]
Shape = tuple[int, ...]
Volume = TypeVar("Volume", bound=NDArray[np.generic])

_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def orientation_of(affine: Affine) -> Orientation:
    """For each voxel axis, (3, 2): the RAS axis that it is closest to, and 1 or -1 for its direction."""
    from nibabel.orientations import io_orientation

    result: Orientation = io_orientation(affine)  # type: ignore[no-untyped-call]
    return result


def orientation_back(orientation: Orientation) -> Orientation:
    """The orientation that takes a volume in RAS order to the voxel order that `orientation` was found in."""
    from nibabel.orientations import ornt_transform

    result: Orientation = ornt_transform(_RAS, orientation)  # type: ignore[no-untyped-call]
    return result


def reorient(volume: Volume, orientation: Orientation) -> Volume:
    """Permute and flip a volume's axes; a view."""
    from nibabel.orientations import apply_orientation

    result: Volume = apply_orientation(volume, orientation)  # type: ignore[no-untyped-call]
    return result


def reorient_affine(affine: Affine, orientation: Orientation, shape: Shape) -> Affine:
    """The transform, voxel to mm, of a volume after `reorient`; `shape` is the one before."""
    from nibabel.orientations import inv_ornt_aff

    result: Affine = affine @ inv_ornt_aff(orientation, shape)  # type: ignore[no-untyped-call]
    return result


def to_ras(volume: Volume, affine: Affine) -> tuple[Volume, Affine]:
    """A volume (a view of it) and its transform in RAS order."""
    orientation = orientation_of(affine)
    return reorient(volume, orientation), reorient_affine(affine, orientation, volume.shape)
