"""A scan in memory, and what reading and writing both need to know about its formats."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
PACKED = (".nii.gz", ".mgz")
MGH = (".mgh", ".mgz")
MGH_HEADER_BYTES = 90  # the fields; a footer of 20 bytes (repetition time and its like) follows the voxels
MGH_VOXELS_AT = 284
CONFLICT_MM = 1e-2  # float32 transforms of one position agree far better than this over a head


@dataclass(frozen=True, eq=False)
class Scan:
    """A 3-D scan as its file holds it.

    Attributes:
        data: voxel values, float32, shape (i, j, k) in the file's voxel order, finite, not constant; scaling applied.
        affine: (4, 4) float64, voxel index to mm, x to the right, y to the front, z to the head (RAS+).
        dtype: the type on disk, in native byte order.
        source: the path that it was read from.
        notes: one line each for the user about what was assumed.
        header: nibabel's header; its class is the format and its fields are kept by `write_scan`. Holds free text:
            never print it.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    source: Path
    notes: tuple[str, ...] = ()
    header: Any = field(default=None, repr=False)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Voxel edge lengths along the three voxel axes, mm."""
        return edge_lengths(self.affine)


def suffix_of(path: Path) -> str | None:
    """Return the known suffix that a path ends in, in lower case, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def is_nifti(header: Any) -> bool:
    """Say whether a header is one of NIfTI, else of MGH."""
    return "pixdim" in header


def scaling_of(header: Any) -> tuple[float, float]:
    """Return slope and intercept of the stored numbers; 1 and 0 where the header gives none."""
    slope, inter = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def edge_lengths(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the length of each voxel axis, mm."""
    i, j, k = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return i, j, k


def corner_distance(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance, mm, between two transforms' positions of the volume's corners."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())
