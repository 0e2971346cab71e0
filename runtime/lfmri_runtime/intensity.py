"""Intensity standardisation, shared by trainer and runtime and stored in the contract.

The network sees two scales. The low-field scan is divided by one number found in the scan itself. High-field
volumes are mapped onto standard landmarks (Nyul, Udupa, Zhang 2000), so that the network learns anatomy and not
one scanner's contrast.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: The percentiles of the landmarks: the ends and the deciles between them (simulator of Lin et al. 2023, step 7).
PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
#: Standardised high-field intensities are clipped here; the 99th percentile of the brain lies at 1.
HIGH_FIELD_LIMIT = 1.25
#: Scaled low-field intensities are clipped here; fat outside the brain is what reaches it.
LOW_FIELD_LIMIT = 2.5
#: Bins of the histogram in which the foreground is found.
HISTOGRAM_BINS = 256


@dataclass(frozen=True, kw_only=True)
class LowFieldScale:
    """Divides a low-field scan so that the mean of its foreground becomes `target`.

    Attributes:
        target: mean of the scaled foreground; the training split's standardised high-field mean.
        limit: upper end of the scaled range [0, limit].
    """

    target: float
    limit: float = LOW_FIELD_LIMIT

    def scale_of(self, scan: Float32Array, mask: Mask | None = None) -> float:
        """Intensity of the scan that becomes 1: mean of the foreground over `target`.

        The foreground is what lies above Otsu's threshold (Otsu 1979), or the mask where one is given.

        Raises:
            InputRefused: the foreground's mean is not above zero.
        """
        foreground = scan[mask] if mask is not None else scan[scan > otsu_threshold(scan)]
        mean = float(foreground.mean(dtype=np.float64)) if foreground.size else 0.0
        if mean <= 0:
            raise InputRefused(
                f"the scan's foreground has a mean of {mean:.3g}; expected a magnitude image with tissue "
                "brighter than its background: check the file or give a --mask that covers the head"
            )
        return mean / self.target

    def apply(self, volume: Float32Array, scale: float) -> Float32Array:
        """Divide by `scale` and clip to [0, limit]."""
        scaled: Float32Array = np.clip(volume / np.float32(scale), 0, self.limit).astype(np.float32, copy=False)
        return scaled


@dataclass(frozen=True, kw_only=True)
class HighFieldStandard:
    """Nyul landmarks of the training split's high-field volumes.

    Zero stays zero (an MR image's own zero), the landmarks map piecewise linearly, the last piece is continued.

    Attributes:
        percentiles: ascending, in (0, 100).
        landmarks: standard intensity of each percentile, ascending; the last one is 1.
        limit: upper end of the standard range [0, limit].
    """

    percentiles: tuple[float, ...]
    landmarks: tuple[float, ...]
    limit: float = HIGH_FIELD_LIMIT

    @classmethod
    def learn(cls, volumes: Iterable[tuple[Float32Array, Mask]]) -> "HighFieldStandard":
        """Average the landmarks of (volume, brain mask) pairs, each divided by its own last percentile."""
        each = [values / values[-1] for values in (_percentiles(volume, mask) for volume, mask in volumes)]
        landmarks = tuple(float(value) for value in np.mean(each, axis=0))
        return cls(percentiles=PERCENTILES, landmarks=landmarks)

    def apply(self, volume: Float32Array, mask: Mask | None = None) -> Float32Array:
        """Map a high-field volume onto the standard scale, [0, limit].

        Args:
            volume: intensities in any unit, zero meaning no signal.
            mask: where the percentiles are taken (the brain); None takes what lies above Otsu's threshold.
        """
        inside = mask if mask is not None else volume > otsu_threshold(volume)
        source = np.concatenate([[0.0], _percentiles(volume, inside, self.percentiles)])
        target = np.concatenate([[0.0], self.landmarks])
        slope = (target[-1] - target[-2]) / max(source[-1] - source[-2], 1e-12)
        beyond = np.clip(volume - np.float32(source[-1]), 0, None) * np.float32(slope)
        mapped = np.interp(volume, source, target).astype(np.float32) + beyond
        standard: Float32Array = np.clip(mapped, 0, self.limit).astype(np.float32, copy=False)
        return standard


def otsu_threshold(volume: Float32Array) -> float:
    """Threshold that separates foreground from background with the largest variance between them (Otsu 1979)."""
    top = max(float(np.percentile(volume, 99.5)), 0.0)
    counts, edges = np.histogram(np.clip(volume, 0, top), bins=HISTOGRAM_BINS, range=(0, max(top, 1e-12)))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts) / counts.sum()
    mean = np.cumsum(counts * centres) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * weight - mean) ** 2 / (weight * (1 - weight))
    return float(edges[1 + int(np.nanargmax(np.where(np.isfinite(between), between, -1)))])


def _percentiles(volume: Float32Array, mask: Mask, percentiles: tuple[float, ...] = PERCENTILES) -> NDArray[np.float64]:
    """Strictly ascending percentiles of the voxels inside the mask that hold signal.

    A mask is often more generous than the stripping of its volume; the zeros between the two say nothing.
    """
    values = volume[mask & (volume > 0)]
    if not values.size:
        raise InputRefused(
            "the high-field volume holds no positive voxel inside the mask; expected a magnitude image: "
            "check the volume and its mask"
        )
    found = np.percentile(values, percentiles).astype(np.float64)
    ascending: NDArray[np.float64] = np.maximum.accumulate(found) + np.arange(1, len(found) + 1) * found[-1] * 1e-9
    return ascending
