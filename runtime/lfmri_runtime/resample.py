"""Separable resampling: one matrix per voxel axis.

Cubic B-spline interpolation with mirrored ends (Unser 1999), the same operator as `scipy.ndimage.map_coordinates`
with `order=3, mode="mirror"`, written as a dense matrix so that numpy alone can apply it.
"""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

#: FWHM of a Gaussian in units of its standard deviation, 2 sqrt(2 ln 2).
FWHM_PER_SIGMA = 2.3548200450309493
#: Two spacings closer than this fraction are the same grid; headers round to about six digits.
SAME_SPACING = 1e-3


def spline_matrix(length: int, positions: Float64Array) -> Float64Array:
    """Matrix that evaluates the cubic spline through `length` samples at `positions`.

    Args:
        length: number of samples, at positions 0 .. length - 1.
        positions: where to evaluate, in samples, within [0, length - 1].

    Returns:
        (len(positions), length). Rows sum to one; integer positions give the samples themselves.
    """
    first = np.floor(positions).astype(int)
    fraction = positions - first
    weights = np.zeros((len(positions), length))
    rows = np.arange(len(positions))
    for offset in (-1, 0, 1, 2):
        np.add.at(weights, (rows, _mirror(first + offset, length)), _cubic_b_spline(fraction - offset))
    sampled = np.zeros((length, length))
    for offset in (-1, 0, 1):
        np.add.at(
            sampled,
            (np.arange(length), _mirror(np.arange(length) + offset, length)),
            _cubic_b_spline(np.array(float(offset))),
        )
    result: Float64Array = np.asarray(np.linalg.solve(sampled.T, weights.T).T, dtype=np.float64)
    result[np.abs(result) < 1e-12] = 0.0  # what solving leaves behind where the answer is exactly zero
    return result


def gaussian_matrix(length: int, sigma: float) -> Float64Array:
    """Matrix that blurs `length` samples with a Gaussian of `sigma` samples, mirrored ends, rows summing to one."""
    radius = int(np.ceil(4 * sigma))
    matrix = np.zeros((length, length))
    rows = np.arange(length)
    for offset in range(-radius, radius + 1):
        weight = np.full(length, np.exp(-0.5 * (offset / sigma) ** 2))
        np.add.at(matrix, (rows, _mirror(rows + offset, length)), weight)
    result: Float64Array = matrix / matrix.sum(axis=1, keepdims=True)
    return result


def regrid_matrix(length: int, spacing: float, new_length: int, new_spacing: float) -> Float64Array | None:
    """Matrix from a grid to another that starts at the same sample centre; None where nothing changes.

    A coarser target is preceded by a Gaussian whose FWHM makes up the difference in resolution,
    sqrt(new_spacing^2 - spacing^2), so that nothing aliases.

    Args:
        length: samples of the source grid.
        spacing: of the source grid, mm.
        new_length: samples of the target grid; the last must lie within the source grid.
        new_spacing: of the target grid, mm.
    """
    if abs(new_spacing - spacing) <= SAME_SPACING * spacing:
        return None if new_length == length else np.eye(new_length, length)
    positions = np.clip(np.arange(new_length) * (new_spacing / spacing), 0, length - 1)
    matrix = spline_matrix(length, positions)
    if new_spacing > spacing:
        sigma = float(np.sqrt(new_spacing**2 - spacing**2) / spacing / FWHM_PER_SIGMA)
        matrix = matrix @ gaussian_matrix(length, sigma)
    return matrix


def apply_along(volume: Float32Array, matrix: Float64Array | None, axis: int) -> Float32Array:
    """Apply a matrix (new_length, length) along one axis of a volume; None leaves it as it is."""
    if matrix is None:
        return volume
    moved = np.tensordot(matrix.astype(np.float32), volume, axes=(1, axis))
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


def _cubic_b_spline(x: Float64Array) -> Float64Array:
    distance = np.abs(x)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def _mirror(index: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    """Reflect indices into 0 .. length - 1 about the first and the last sample; one sample is its own mirror."""
    period = max(1, 2 * (length - 1))
    folded = np.abs(index) % period
    return np.where(folded < length, folded, period - folded)
