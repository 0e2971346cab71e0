"""What the simulator draws from, by name.

The SIQT presets follow Lin et al. 2023 and its released configuration; what neither gives is marked assumed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: (SNR_WM, SNR_GM) of low-field T1w scans, published in the authors' configuration.
T1W_MEAN = (64.50, 54.14)
T1W_COVARIANCE = ((78.47, 71.50), (71.50, 73.91))
#: Mahalanobis bound of in-distribution draws (assumed). Any bound below 3.383 keeps SNR_WM > SNR_GM.
IN_DISTRIBUTION_BOUND = 3.0
#: Distance from the mean to the line SNR_WM = SNR_GM; out-of-distribution draws lie beyond it (computed).
CONTRAST_BOUND = 3.383
#: Centre of the out-of-distribution draws, ultra-low-field T1w (assumed).
OUT_OF_DISTRIBUTION_MEAN = (14.0, 12.0)
#: Their covariance: the T1w one scaled by the ratio of the centres, squared (assumed).
OUT_OF_DISTRIBUTION_SCALE = (14.0 / 64.50) ** 2

#: Factors of the noise of the noisy preset, for training (assumed); the out-of-distribution draws have 4.6.
NOISIER = (1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class UltraLowField:
    """What scans of a portable scanner add to SIQT, as ranges of uniform draws (all assumed).

    Attributes:
        in_plane: voxel size in plane, mm.
        spacing: slice spacing along the thick axis, mm; no gap.
        snr_wm: SNR of white matter.
        gm_ratio: SNR_GM / SNR_WM.
        bias: peak deviation of the receive field from 1.
    """

    in_plane: tuple[float, float] = (1.0, 1.8)
    spacing: tuple[float, float] = (4.0, 6.0)
    snr_wm: tuple[float, float] = (10.0, 60.0)
    gm_ratio: tuple[float, float] = (0.72, 0.95)
    bias: tuple[float, float] = (0.05, 0.30)


@dataclass(frozen=True, kw_only=True)
class SimulationPreset:
    """One kind of low-field scan.

    Attributes:
        factor: slice spacing (thickness + gap) in voxels of the subject.
        thickness: slice thickness in voxels; the FWHM of the slice profile.
        in_distribution: draws within IN_DISTRIBUTION_BOUND of the published mean, or out of distribution.
        noisier: range of a uniform factor by which both drawn SNRs are divided, so that the contrast stays; None
            leaves them as they are.
        ultra_low_field: None for SIQT; otherwise its ranges replace factor, thickness and the SNR distribution.
    """

    factor: int = 4
    thickness: int = 3
    in_distribution: bool = True
    noisier: tuple[float, float] | None = None
    ultra_low_field: UltraLowField | None = None


PRESETS = {
    "siqt-k4": SimulationPreset(),
    "siqt-k8": SimulationPreset(factor=8, thickness=6),
    "siqt-k4-noisy": SimulationPreset(noisier=NOISIER),
    "siqt-k4-ood": SimulationPreset(in_distribution=False),
    "siqt-k8-ood": SimulationPreset(factor=8, thickness=6, in_distribution=False),
    "ultra-low-field": SimulationPreset(ultra_low_field=UltraLowField()),
}


_PRECISION = np.linalg.inv(np.asarray(T1W_COVARIANCE))


def mahalanobis(snr: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mahalanobis distance of (..., 2) SNR pairs (WM, GM) from the published T1w distribution."""
    difference = snr - np.asarray(T1W_MEAN)
    result: NDArray[np.float64] = np.sqrt(np.einsum("...i,ij,...j->...", difference, _PRECISION, difference))
    return result
