"""A low-field scan's contrast, fitted: a piecewise linear map of the enhanced intensities, times a smooth field."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.forward import Matrices, blur, simulate

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Knots of the fitted contrast on the standard scale; closest where grey and white matter lie.
KNOTS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.92, 1.05, 1.25)
#: FWHM that tells a field from structure, mm.
FIELD_MM = 60.0
#: Weight of the difference between neighbouring slopes of the contrast, against all voxels. Without it the few voxels
#: of an invented bright structure would bend the contrast until it explains them.
STIFFNESS = 0.05
#: Voxels that the contrast is fitted to: plenty for seven numbers.
FITTED = 50_000


def with_fitted_contrast(
    enhanced: Float32Array, y: Float32Array, head: Mask, matrices: Matrices, spacing: tuple[float, float, float]
) -> tuple[Float32Array, Float32Array]:
    """The simulated scan under the contrast and the field that fit best, by least squares over the head.

    Returns:
        it, and the brightest that it could be at each voxel: the scale of enhanced scans ends at the last knot.
    """
    chosen = np.flatnonzero(head)
    chosen = chosen[:: -(-len(chosen) // FITTED)]
    rises = np.empty((len(chosen), len(KNOTS) - 1))
    for k, (low, high) in enumerate(pairwise(KNOTS)):
        rise = np.clip((enhanced - np.float32(low)) / np.float32(high - low), 0, 1)
        rises[:, k] = simulate(rise, matrices).ravel()[chosen]
    flat, _ = _with_contrast(enhanced, rises, y.ravel()[chosen], matrices)
    field = _smooth_ratio(y, flat, head, spacing)
    flat, brightest = _with_contrast(enhanced, rises, (y / field).ravel()[chosen], matrices)
    return field * flat, field * np.float32(brightest)


def _with_contrast(
    enhanced: Float32Array, rises: Float64Array, target: Float32Array, matrices: Matrices
) -> tuple[Float32Array, float]:
    """The simulated scan under the piecewise linear contrast whose rises between the knots fit best, and its top."""
    slopes = np.diff(np.diag(1 / np.diff(KNOTS)), axis=0) * np.sqrt(STIFFNESS * len(target)) * np.diff(KNOTS).mean()
    wanted = np.concatenate([target, np.zeros(len(slopes))])
    fitted = np.linalg.lstsq(np.concatenate([rises, slopes]), wanted, rcond=None)[0]
    heights = np.concatenate([[0.0], np.cumsum(fitted)])
    contrasted = np.empty_like(enhanced)
    for n, plane in enumerate(enhanced):  # np.interp takes float64, so not the whole volume at once
        contrasted[n] = np.interp(plane, KNOTS, heights)
    return simulate(contrasted, matrices), float(heights.max())


def _smooth_ratio(
    y: Float32Array, fitted: Float32Array, head: Mask, spacing: tuple[float, float, float]
) -> Float32Array:
    """The field that scan and simulation differ by at long wavelengths."""
    above, below = (blur(np.where(head, v, np.float32(0)), FIELD_MM, spacing, (0, 1, 2)) for v in (y, fitted))
    floor = np.float32(1e-3) * below.max()
    ratio = np.where(below > floor, above, 1) / np.where(below > floor, below, 1)
    return ratio.astype(np.float32, copy=False)
