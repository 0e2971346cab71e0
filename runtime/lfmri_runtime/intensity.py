"""Intensity standardisation, shared by trainer and runtime and stored in the contract.

The network sees two scales. The low-field scan is divided by one number found in the scan itself. High-field
volumes are mapped so that mean grey and white matter lie at standard intensities, so that the network learns anatomy
and not one scanner's contrast.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.tissue import tissue_means

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Standard intensities of grey and white matter (assumed): about the contrast of four 1.5 and 3 T brains, with the
#: brightest white matter at 1.
STANDARD_GM = 0.65
STANDARD_WM = 0.92
#: Standardised high-field intensities are clipped here; outside the brain fat is what reaches it.
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
    """Where the mean grey and white matter of a T1w brain lie on the standard scale.

    Zero stays zero (an MR image's own zero), the two means map piecewise linearly, the last piece is continued.
    CSF keeps its ratio to grey matter, as it does in a low-field scan of the same brain.

    Attributes:
        gm: standard intensity of the mean grey matter.
        wm: standard intensity of the mean white matter, above `gm`.
        limit: upper end of the standard range [0, limit].
    """

    gm: float = STANDARD_GM
    wm: float = STANDARD_WM
    limit: float = HIGH_FIELD_LIMIT

    def apply(self, volume: Float32Array, mask: Mask | None = None) -> Float32Array:
        """Map a high-field volume onto the standard scale, [0, limit].

        Args:
            volume: T1w intensities in any unit, zero meaning no signal.
            mask: where the tissue means are found (the brain); None takes what lies above Otsu's threshold.

        Raises:
            InputRefused: no three classes of tissue inside the mask.
        """
        gm, wm = tissue_means(volume, mask if mask is not None else volume > otsu_threshold(volume))
        lower, upper = self.gm / gm, (self.wm - self.gm) / (wm - gm)
        above = np.float32(self.gm) + np.float32(upper) * (volume - np.float32(gm))
        mapped = np.where(volume < gm, np.float32(lower) * volume, above)
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
