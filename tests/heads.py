"""A smooth head whose value is known at every place, sampled on any grid."""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Affine = NDArray[np.float64]

#: Shape of the usual scan; its voxels are 1.5 x 1.2 x 5 mm.
SHAPE = (20, 22, 7)


def head(points: Affine) -> Affine:
    """A smooth head around the origin, mm; nothing in it is brighter than the standard range allows."""
    x, y, z = np.moveaxis(points, -1, 0)
    radius = np.sqrt((x / 9) ** 2 + (y / 8) ** 2 + (z / 10) ** 2)
    return 300 / (1 + np.exp(6 * (radius - 1))) * (1 + 0.15 * np.sin(x / 5 + 1) + 0.1 * np.cos(y / 4) + 0.1 * z / 15)


def places(shape: tuple[int, ...], affine: Affine) -> Affine:
    """Position of every voxel's centre, mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def scan_of(affine: Affine, shape: tuple[int, ...] = SHAPE) -> tuple[Float32Array, Affine]:
    """The head on a grid with its centre at the origin."""
    affine = affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return head(places(shape, affine)).astype(np.float32), affine
