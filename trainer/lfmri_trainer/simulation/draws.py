"""Random parameters of a simulated pair: drawn here, applied elsewhere, written to pairs.csv between the two."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.geometry import AXES
from lfmri_trainer.randomness import named_generator
from lfmri_trainer.simulation.presets import (
    CONTRAST_BOUND,
    IN_DISTRIBUTION_BOUND,
    OUT_OF_DISTRIBUTION_MEAN,
    OUT_OF_DISTRIBUTION_SCALE,
    PRESETS,
    T1W_COVARIANCE,
    T1W_MEAN,
    SimulationPreset,
    UltraLowField,
    mahalanobis,
)


@dataclass(frozen=True, kw_only=True)
class PairParameters:
    """One row of pairs.csv: everything that makes a low-field scan from its subject.

    Attributes:
        pair: name of the pair, and of its folder.
        subject: name of the subject.
        split: train, validation or test.
        preset: name of the simulation preset.
        anatomy: brain (stripped) or head.
        thick_axis: R, A or S.
        fixed: tissue that keeps its intensity, WM or GM.
        spacing: slice spacing, in the subject's voxels along the thick axis.
        thickness: FWHM of the slice profile, in the same voxels.
        snr_wm: drawn SNR of white matter.
        snr_gm: drawn SNR of grey matter.
        distance: Mahalanobis distance of the two from the published T1w distribution.
        noise: gaussian (real, as SIQT) or rician (magnitude of complex data).
        in_plane: voxel size in plane, mm; 0 keeps the subject's.
        bias: peak deviation of the receive field from 1; 0 for none.
        seed: of the noise and of the bias field's shape.
    """

    pair: str
    subject: str
    split: str
    preset: str
    anatomy: str
    thick_axis: str
    fixed: str
    spacing: float
    thickness: float
    snr_wm: float
    snr_gm: float
    distance: float
    noise: str
    in_plane: float
    bias: float
    seed: int


def draw_pair(
    *,
    preset: str,
    subject: str,
    split: str,
    thick_axis: str,
    fixed: str,
    voxel_sizes: tuple[float, float, float],
    index: int,
    seed: int,
) -> PairParameters:
    """Draw the parameters of one pair.

    Args:
        preset: a name in PRESETS.
        subject: name of the subject.
        split: train, validation or test.
        thick_axis: R, A, S, or random.
        fixed: WM or GM.
        voxel_sizes: of the subject in RAS order, mm (the ultra-low-field preset draws in mm).
        index: counts the draws of one subject and preset.
        seed: of the whole simulation; with the arguments above it determines the pair.
    """
    rng = named_generator(seed, f"{subject}|{preset}|{index}")
    drawn_axis = str(rng.choice(list(AXES)))
    axis = drawn_axis if thick_axis == "random" else thick_axis
    chosen = PRESETS[preset]
    values = (
        _draw_siqt(rng, chosen)
        if chosen.ultra_low_field is None
        else _draw_ultra_low_field(rng, chosen.ultra_low_field, voxel_sizes[AXES.index(axis)])
    )
    snr = np.array([values["snr_wm"], values["snr_gm"]])
    return PairParameters(
        pair=f"{subject}_{preset}_{index:03d}",
        subject=subject,
        split=split,
        preset=preset,
        thick_axis=axis,
        fixed=fixed,
        distance=round(float(mahalanobis(snr)), 6),
        seed=int(rng.integers(2**31)),
        **values,  # type: ignore[arg-type]
    )


def draw_snr(rng: np.random.Generator, *, in_distribution: bool) -> tuple[float, float]:
    """Draw (SNR_WM, SNR_GM), by rejection.

    In distribution: the published Gaussian within the bound, which implies SNR_WM > SNR_GM. Out of distribution:
    around ultra-low-field values, SNR_WM > SNR_GM, both above 2, and farther than any in-distribution draw (assumed).
    """
    while True:
        if in_distribution:
            snr = _gaussian(rng, T1W_MEAN, _T1W_FACTOR)
            accepted = mahalanobis(snr) <= IN_DISTRIBUTION_BOUND
        else:
            snr = _gaussian(rng, OUT_OF_DISTRIBUTION_MEAN, _OUT_OF_DISTRIBUTION_FACTOR)
            accepted = snr[0] > snr[1] > 2 and mahalanobis(snr) > CONTRAST_BOUND
        if accepted:
            return float(snr[0]), float(snr[1])


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrix that turns independent normals into ones of this covariance; numpy's own, which it makes anew a draw."""
    left, scale, _ = np.linalg.svd(covariance)
    result: NDArray[np.float64] = left * np.sqrt(scale)
    return result


_T1W_FACTOR = _factor(np.asarray(T1W_COVARIANCE))
_OUT_OF_DISTRIBUTION_FACTOR = _factor(np.asarray(T1W_COVARIANCE) * OUT_OF_DISTRIBUTION_SCALE)


def _gaussian(rng: np.random.Generator, mean: tuple[float, float], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.asarray(mean) + (rng.standard_normal((1, 2)) @ factor.T)[0]
    return result


def _draw_siqt(rng: np.random.Generator, preset: SimulationPreset) -> dict[str, object]:
    snr_wm, snr_gm = draw_snr(rng, in_distribution=preset.in_distribution)
    if preset.noisier is not None:
        factor = rng.uniform(*preset.noisier)
        snr_wm, snr_gm = snr_wm / factor, snr_gm / factor
    return {
        "anatomy": "brain",
        "spacing": float(preset.factor),
        "thickness": float(preset.thickness),
        "snr_wm": round(snr_wm, 6),
        "snr_gm": round(snr_gm, 6),
        "noise": "gaussian",
        "in_plane": 0.0,
        "bias": 0.0,
    }


def _draw_ultra_low_field(rng: np.random.Generator, ranges: UltraLowField, voxel_size: float) -> dict[str, object]:
    spacing = rng.uniform(*ranges.spacing) / voxel_size
    snr_wm = rng.uniform(*ranges.snr_wm)
    return {
        "anatomy": "head",
        "spacing": round(float(spacing), 6),
        "thickness": round(float(spacing), 6),
        "snr_wm": round(float(snr_wm), 6),
        "snr_gm": round(float(snr_wm * rng.uniform(*ranges.gm_ratio)), 6),
        "noise": "rician",
        "in_plane": round(float(rng.uniform(*ranges.in_plane)), 6),
        "bias": round(float(rng.uniform(*ranges.bias)), 6),
    }
