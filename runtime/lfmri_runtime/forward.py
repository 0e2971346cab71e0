"""The scan that a volume on the working grid would give: slice profile, resolution in plane, sampling.

The slice profile is a Gaussian whose FWHM is the slice thickness (Lin et al. 2023, Medical Image Analysis 87, 102807).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.geometry import WorkingGrid
from lfmri_runtime.resample import FWHM_PER_SIGMA, apply_along, gaussian_matrix, regrid_matrix, spline_matrix

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Matrices = Sequence[tuple[int, Float64Array | None]]


def scan_matrices(place: WorkingGrid, *, thick: int | None, thickness: float | None) -> Matrices:
    """The linear operator from the working grid to the scan's, as (axis, matrix), the one that shortens most first.

    Along the thick axis the slice profile is sampled at the slices' own positions. In plane, a scan with larger
    voxels than the working grid's has the lower resolution that goes with them.
    """
    matrices: list[tuple[int, Float64Array | None]] = []
    for axis in range(3):
        lengths, spacings = (place.shape[axis], place.scan_shape[axis]), (place.spacing[axis], place.scan_spacing[axis])
        if axis == thick:
            positions = np.clip(np.arange(lengths[1]) * (spacings[1] / spacings[0]), 0, lengths[0] - 1)
            sigma = (thickness or spacings[1]) / spacings[0] / FWHM_PER_SIGMA
            matrices.append((axis, spline_matrix(lengths[0], positions) @ gaussian_matrix(lengths[0], sigma)))
        else:
            matrices.append((axis, regrid_matrix(lengths[0], spacings[0], lengths[1], spacings[1])))
    return sorted(matrices, key=lambda item: place.scan_shape[item[0]] / place.shape[item[0]])


def simulate(volume: Float32Array, matrices: Matrices) -> Float32Array:
    """Apply the operator."""
    for axis, matrix in matrices:
        volume = apply_along(volume, matrix, axis)
    return volume


def blur(volume: Float32Array, fwhm: float, spacing: tuple[float, float, float], axes: tuple[int, ...]) -> Float32Array:
    """Gaussian mean along the axes, its FWHM in mm as the spacing."""
    for axis in axes:
        volume = apply_along(volume, gaussian_matrix(volume.shape[axis], fwhm / spacing[axis] / FWHM_PER_SIGMA), axis)
    return volume
