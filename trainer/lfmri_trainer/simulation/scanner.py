"""Applying drawn parameters to a subject: the low-field scan.

Steps 2 to 5 of the stochastic simulator of Lin et al. 2023 (Medical Image Analysis 87, 102807), and, where the
parameters ask for them, k-space truncation in plane (lower resolution and Gibbs ringing), a receive bias field and
Rician noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.geometry import AXES, voxel_sizes
from lfmri_runtime.resample import FWHM_PER_SIGMA, apply_along, spline_matrix
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.tissue import Anatomy

Float32Array = NDArray[np.float32]

#: A voxel counts as pure tissue above this map value (Lin et al. 2023).
PURE = 0.9
#: Fewer pure voxels than this give no mean worth the name.
FEWEST_PURE = 10


@dataclass(frozen=True)
class LowFieldScan:
    """A simulated scan: float32 data, its affine, and the noise's standard deviation in its own units."""

    data: Float32Array
    affine: NDArray[np.float64]
    sigma: float


def simulate(anatomy: Anatomy, parameters: PairParameters) -> LowFieldScan:
    """Make the low-field scan of one subject. The same parameters give the same bytes.

    Raises:
        InputRefused: too little pure tissue is left after the slice profile.
    """
    axis = AXES.index(parameters.thick_axis)
    head = parameters.anatomy == "head" and anatomy.image_head is not None
    image = anatomy.image_head if head and anatomy.image_head is not None else anatomy.image_brain
    # What is in no map becomes zero, as in SIQT; a kept head is the one tissue more that keeps its intensity.
    other = np.clip(1 - anatomy.gm - anatomy.wm - anatomy.csf, 0, 1) if head else np.zeros_like(image)
    volumes = [
        thick_slices(volume, axis=axis, spacing=parameters.spacing, thickness=parameters.thickness)
        for volume in (image, anatomy.gm, anatomy.wm, anatomy.csf, other)
    ]
    contrasted, sigma = low_field_contrast(*volumes, parameters=parameters)
    affine = anatomy.affine.copy()
    affine[:3, axis] *= parameters.spacing
    rng = np.random.Generator(np.random.Philox(parameters.seed))
    if parameters.bias > 0:
        contrasted = contrasted * bias_field(contrasted.shape, peak=parameters.bias, rng=rng)
    if parameters.in_plane > 0:
        for plane_axis in (a for a in range(3) if a != axis):
            contrasted, ratio = truncate(contrasted, axis=plane_axis, affine=affine, voxel_size=parameters.in_plane)
            affine[:3, plane_axis] *= ratio
    return LowFieldScan(add_noise(contrasted, sigma=sigma, kind=parameters.noise, rng=rng), affine, sigma)


def thick_slices(volume: Float32Array, *, axis: int, spacing: float, thickness: float) -> Float32Array:
    """Steps 2 and 3: Gaussian slice profile, then a cubic spline sampled every `spacing` voxels from the first on.

    Args:
        volume: isotropic or not, in the subject's voxels.
        axis: the thick one.
        spacing: thickness plus gap, in voxels; slice i of the result sits at voxel i * spacing.
        thickness: FWHM of the profile, in voxels; the gap is not counted.
    """
    blurred = gaussian_filter1d(volume, thickness / FWHM_PER_SIGMA, axis=axis, mode="nearest")
    length = volume.shape[axis]
    count = int(np.floor((length - 1) / spacing + 1e-9)) + 1
    return apply_along(blurred, spline_matrix(length, np.arange(count, dtype=np.float64) * spacing), axis)


def low_field_contrast(
    image: Float32Array,
    gm: Float32Array,
    wm: Float32Array,
    csf: Float32Array,
    other: Float32Array,
    *,
    parameters: PairParameters,
) -> tuple[Float32Array, float]:
    """Step 4: rescale one tissue so that the two SNRs stand in the drawn ratio; returns the image and sigma."""
    mean_wm, mean_gm = _pure_mean(image, wm, "WM", parameters), _pure_mean(image, gm, "GM", parameters)
    if parameters.fixed == "WM":
        sigma = mean_wm / parameters.snr_wm
        factor_wm, factor_gm = 1.0, parameters.snr_gm * sigma / mean_gm
    else:
        sigma = mean_gm / parameters.snr_gm
        factor_wm, factor_gm = parameters.snr_wm * sigma / mean_wm, 1.0
    maps = np.float32(factor_wm) * wm + np.float32(factor_gm) * gm + csf + other
    return maps * image, float(sigma)


def bias_field(shape: tuple[int, ...], *, peak: float, rng: np.random.Generator) -> Float32Array:
    """A smooth multiplicative field: random second-order polynomial, scaled to deviate from 1 by at most `peak`."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    terms = (x, y, z, x * y, y * z, x * z, x**2, y**2, z**2)
    field: Float32Array = np.zeros(shape, dtype=np.float32)
    for term, coefficient in zip(terms, rng.uniform(-1, 1, len(terms)), strict=True):
        field = field + np.float32(coefficient) * term
    field -= field.mean(dtype=np.float64).astype(np.float32)
    result: Float32Array = np.float32(1) + np.float32(peak) * field / np.abs(field).max()
    return result


def truncate(
    image: Float32Array, *, axis: int, affine: NDArray[np.float64], voxel_size: float
) -> tuple[Float32Array, float]:
    """Keep the centre of k-space along one axis, as a scanner of that voxel size does; edges ring (Gibbs).

    Returns:
        the image with fewer voxels along the axis, voxel 0 at the same place, and the ratio of the spacings.
    """
    length = image.shape[axis]
    kept = round(length * voxel_sizes(affine)[axis] / voxel_size)
    if kept >= length:
        return image, 1.0
    spectrum = np.fft.rfft(image, axis=axis)
    cut = np.take(spectrum, np.arange(kept // 2 + 1), axis=axis)
    if kept % 2 == 0:
        # The Nyquist sample of an even length stands for both signs: only its real half-sum is observable.
        edge = [slice(None)] * 3
        edge[axis] = slice(-1, None)
        cut[tuple(edge)] = 2 * cut[tuple(edge)].real
    shortened = np.fft.irfft(cut, n=kept, axis=axis) * (kept / length)
    return shortened.astype(np.float32), length / kept


def add_noise(image: Float32Array, *, sigma: float, kind: str, rng: np.random.Generator) -> Float32Array:
    """Step 5: real Gaussian noise on every voxel; or the magnitude of complex data with that noise (Rician)."""
    noisy: Float32Array = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    if kind == "gaussian":
        return noisy
    magnitude: Float32Array = np.hypot(noisy, np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32))
    return magnitude


def _pure_mean(image: Float32Array, tissue: Float32Array, name: str, parameters: PairParameters) -> float:
    pure = tissue > PURE
    if np.count_nonzero(pure) < FEWEST_PURE:
        raise InputRefused(
            f"subject {parameters.subject} has {np.count_nonzero(pure)} voxels of {name} above {PURE} in slices of "
            f"{parameters.thickness:g} voxels; expected at least {FEWEST_PURE}: check its tissue maps"
        )
    return float(image[pure].mean(dtype=np.float64))
