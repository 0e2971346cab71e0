"""Whether an enhanced scan explains the scan that it was made from: the check for invented and erased structure.

The low-field scan is simulated back from the enhanced one: blurred along the thick axis by the slice profile, a
Gaussian whose FWHM is the slice thickness (Lin et al. 2023, Medical Image Analysis 87, 102807), and sampled at the
scan's voxels. Low field has another contrast, so that is fitted: a piecewise linear map of the enhanced intensities,
times a smooth field. What remains is the residual. Its mean over neighbourhoods of a few millimetres shows what
the scan does not hold; how large that is anywhere, in units of its own spread over the head, is the one number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.contrast import with_fitted_contrast
from lfmri_runtime.forward import blur, scan_matrices, simulate
from lfmri_runtime.geometry import WorkingGrid
from lfmri_runtime.intensity import otsu_threshold
from lfmri_runtime.noise import MEDIAN_PER_SIGMA, noise_sigma
from lfmri_runtime.resample import FWHM_PER_SIGMA, gaussian_matrix

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: A larger number is noted. The section on consistency in docs/benchmark.md has what scans reach as enhanced and with
#: spheres added or taken away: this lies above the former.
THRESHOLD = 11.0
#: FWHM of the neighbourhoods, mm: about the smallest lesion that slices of 4 mm show.
NEIGHBOURHOOD_MM = 5.0
#: A neighbourhood that lies in the head to a smaller share than this is not looked at.
SHARE_IN_HEAD = 0.7
#: The air is what lies farther from the head than about this, mm: where a blur of twice this FWHM leaves no head.
AIR_MM = 10.0
NO_HEAD = 0.01
#: Fewer voxels of head than this give no fit worth the name.
FEWEST = 500


@dataclass(frozen=True, eq=False, kw_only=True)
class Consistency:
    """What of a scan its enhanced version does not explain.

    Attributes:
        residual: scan minus simulation in units of the noise, on the scan's grid in RAS order; 0 outside the head.
        noise: standard deviation of the scan's noise, in the scan's unit.
        rms: root mean square of the residual over the head.
        largest: largest neighbourhood mean of the residual, in units of the spread of all of them.
        place: where that is, mm RAS.
    """

    residual: Float32Array
    noise: float
    rms: float
    largest: float
    place: tuple[float, float, float]


def check(
    place: WorkingGrid,
    enhanced: Float32Array,
    scan: Float32Array,
    *,
    scale: float,
    limit: float,
    thick: int | None,
    thickness: float | None = None,
    mask: Mask | None = None,
) -> Consistency | None:
    """Compare a scan with the one that its enhanced version would give.

    Args:
        place: the working grid and the scan's.
        enhanced: on the working grid, on the standard scale.
        scan: in RAS order, in its own unit, not masked.
        scale: intensity of the scan that became 1.
        limit: the scan was clipped there after scaling.
        thick: the thick axis; None takes no slice profile.
        thickness: of the slices, mm; None takes the slice spacing (assumed: slices without gap).
        mask: only what lies inside is compared; RAS order.

    Returns:
        None where there is too little head or no noise to compare with.
    """
    matrices = scan_matrices(place, thick=thick, thickness=thickness)
    y = np.clip(scan / np.float32(scale), None, np.float32(limit))
    if mask is not None:
        y *= mask
    plain = simulate(enhanced, matrices)
    head = (y > otsu_threshold(y)) | (plain > otsu_threshold(plain))
    if mask is not None:
        head &= mask
    noise = _noise(scan, head, place, thick)
    if noise is None or np.count_nonzero(head) < FEWEST:
        return None
    fitted, brightest = with_fitted_contrast(enhanced, y, head, matrices, place.scan_spacing)
    # Blood that flows in is brighter than an enhanced scan can be: it is compared with the brightest that one can show.
    residual = np.where(head, np.minimum(y, brightest) - fitted, np.float32(0))
    residual *= np.float32(scale / noise)
    planes = tuple(axis for axis in range(3) if axis != thick)
    means, gain = neighbourhood_means(residual, head, place.scan_spacing, planes)
    if thick is not None:
        np.moveaxis(means, thick, 0)[[0, -1]] = np.nan  # half of their profile lies beyond the working grid
    if not np.isfinite(means).any():
        return None
    # Their spread is the model's error and the noise's; the noise alone already gives the gain.
    spread = max(float(np.nanmedian(np.abs(means))) / MEDIAN_PER_SIGMA, gain)
    means = np.nan_to_num(np.abs(means), copy=False)
    index = np.unravel_index(int(means.argmax()), means.shape)
    where = place.scan_affine @ np.array([*index, 1.0])
    return Consistency(
        residual=residual,
        noise=noise,
        rms=float(np.sqrt(np.mean(np.square(residual[head], dtype=np.float64)))),
        largest=float(means[index]) / spread,
        place=(float(where[0]), float(where[1]), float(where[2])),
    )


def describe(found: Consistency | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The report's entry, and a note where the number is above THRESHOLD."""
    if found is None:
        return {"largest": None, "threshold": THRESHOLD, "place_mm": None, "rms": None, "noise": None}, ()
    report = {
        "largest": round(found.largest, 2),
        "threshold": THRESHOLD,
        "place_mm": [round(value, 1) for value in found.place],
        "rms": round(found.rms, 3),
        "noise": float(f"{found.noise:.4g}"),
    }
    warned = warning(report)
    return report, () if warned is None else (warned,)


def warning(entry: dict[str, Any]) -> str | None:
    """The note that belongs to a report's entry; None where its number is not above the threshold."""
    if entry["largest"] is None or entry["largest"] <= entry["threshold"]:
        return None
    near = ", ".join(f"{value:.0f}" for value in entry["place_mm"])
    return (
        f"the enhanced scan does not explain the input near ({near}) mm RAS: the residual there is "
        f"{entry['largest']:.1f} times its usual spread, expected at most {entry['threshold']:g}; trust the input "
        "there, not the enhanced scan"
    )


def neighbourhood_means(
    residual: Float32Array, head: Mask, spacing: tuple[float, float, float], planes: tuple[int, ...]
) -> tuple[Float32Array, float]:
    """Gaussian means over the head within the slice; NaN where a neighbourhood lies too little in it.

    Returns:
        the means, and the standard deviation that white noise of 1 leaves in them.
    """
    weight = blur(head.astype(np.float32), NEIGHBOURHOOD_MM, spacing, planes)
    means = blur(residual, NEIGHBOURHOOD_MM, spacing, planes)
    looked_at = head & (weight >= SHARE_IN_HEAD)
    gain = 1.0
    for axis in planes:
        kernel = gaussian_matrix(head.shape[axis], NEIGHBOURHOOD_MM / spacing[axis] / FWHM_PER_SIGMA)
        gain *= float(np.sqrt(np.sum(kernel[head.shape[axis] // 2] ** 2)))
    return np.where(looked_at, means / np.where(looked_at, weight, 1), np.float32(np.nan)), gain


def _noise(scan: Float32Array, head: Mask, place: WorkingGrid, thick: int | None) -> float | None:
    """The scan's noise, from the plane across the thick axis."""
    planes = tuple(axis for axis in range(3) if axis != (2 if thick is None else thick))
    near = blur(head.astype(np.float32), 2 * AIR_MM, place.scan_spacing, planes)
    return noise_sigma(scan, head=head, air=near < NO_HEAD, planes=planes)
