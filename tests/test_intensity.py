from pathlib import Path
from typing import Any

import nibabel as nib
import nilearn
import numpy as np
import numpy.typing as npt
import pytest
from skimage.filters import threshold_otsu

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.intensity import (
    HIGH_FIELD_LIMIT,
    HISTOGRAM_BINS,
    LOW_FIELD_LIMIT,
    PERCENTILES,
    HighFieldStandard,
    LowFieldScale,
    otsu_threshold,
)

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SHAPE = (40, 40, 40)


@pytest.fixture(scope="module")
def brain() -> tuple[Array, Mask, dict[str, Mask]]:
    """Nilearn's MNI152 average, every third voxel, with its mask and its surely grey, white and other voxels."""
    source = Path(nilearn.__file__).parent / "datasets" / "data"
    t1, gm, wm = (
        np.ascontiguousarray(
            nib.load(source / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz").get_fdata(dtype=np.float32)[
                ::3, ::3, ::3
            ]
        )
        for kind in ("t1", "gm", "wm")
    )
    mask = t1 > 0
    classes = {"gm": gm > 230, "wm": wm > 230, "csf": mask & (gm + wm < 128)}
    return t1, mask, classes


@pytest.fixture
def bimodal() -> Array:
    """Background noise about 10, a third of the voxels about 100."""
    rng = np.random.default_rng(0)
    volume = np.abs(rng.normal(0, 10, SHAPE))
    volume[:, :, 26:] = rng.normal(100, 12, (40, 40, 14))
    return volume.clip(0).astype(np.float32)


def other_contrast(volume: Array, *, gain: float = 3.0, gamma: float = 0.6) -> Array:
    """The same anatomy in another sequence: monotone, but grey and white stand elsewhere."""
    top = np.float32(volume.max())
    return (np.float32(gain) * top * (volume / top) ** np.float32(gamma)).astype(np.float32)


def means(volume: Array, classes: dict[str, Mask]) -> npt.NDArray[np.float64]:
    return np.array([volume[inside].mean(dtype=np.float64) for inside in classes.values()])


# ---- Otsu


@pytest.mark.parametrize(("level", "spread", "share"), [(100, 12, 0.35), (40, 8, 0.35), (100, 12, 0.05), (60, 20, 0.7)])
def test_the_threshold_is_scikit_images(level: float, spread: float, share: float) -> None:
    rng = np.random.default_rng(1)
    bright = rng.uniform(size=SHAPE) < share
    volume = np.where(bright, rng.normal(level, spread, SHAPE), np.abs(rng.normal(0, 8, SHAPE))).clip(0)
    volume = volume.astype(np.float32)
    top = float(np.percentile(volume, 99.5))
    expected = threshold_otsu(volume.clip(0, top), nbins=HISTOGRAM_BINS)
    assert otsu_threshold(volume) == pytest.approx(expected, abs=1.01 * top / HISTOGRAM_BINS)


def test_the_threshold_parts_the_modes(bimodal: Array) -> None:
    threshold = otsu_threshold(bimodal)
    assert (bimodal[:, :, 26:] > threshold).mean() > 0.99
    assert (bimodal[:, :, :26] > threshold).mean() < 0.01


def test_a_few_very_bright_voxels_do_not_move_the_threshold(bimodal: Array) -> None:
    spiked = bimodal.copy()
    spiked.flat[:: SHAPE[0] * 10] = 1e5
    assert otsu_threshold(spiked) == pytest.approx(otsu_threshold(bimodal), rel=0.1)


# ---- low field


def test_the_foreground_comes_to_the_target(bimodal: Array) -> None:
    scale = LowFieldScale(target=0.6)
    scaled = scale.apply(bimodal, scale.scale_of(bimodal))
    assert scaled[:, :, 26:].mean() == pytest.approx(0.6, rel=0.01)
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("unit", [1e-3, 1000, 12345.678])
def test_a_scan_in_other_units_is_scaled_to_the_same(bimodal: Array, unit: float) -> None:
    scale = LowFieldScale(target=0.6)
    other = bimodal * np.float32(unit)
    assert scale.scale_of(other) == pytest.approx(unit * scale.scale_of(bimodal), rel=1e-4)
    first, second = (scale.apply(one, scale.scale_of(one)) for one in (bimodal, other))
    np.testing.assert_allclose(second, first, rtol=2e-4, atol=1e-6)


def test_a_mask_takes_the_place_of_the_threshold(bimodal: Array) -> None:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[10:30, 10:30, 20:32] = True
    found = LowFieldScale(target=0.5).scale_of(bimodal, mask)
    assert found == pytest.approx(bimodal[mask].mean(dtype=np.float64) / 0.5, rel=1e-6)
    assert found < 0.8 * LowFieldScale(target=0.5).scale_of(bimodal)


def test_the_low_field_range_ends_at_its_limit() -> None:
    volume = np.array([[[-5.0, 0.0, 1.0, 4.0, 5.0, 1000.0]]], np.float32)
    scaled = LowFieldScale(target=1).apply(volume, 2.0)
    np.testing.assert_allclose(scaled, [[[0, 0, 0.5, 2, LOW_FIELD_LIMIT, LOW_FIELD_LIMIT]]])


@pytest.mark.parametrize("level", [0.0, -3.0])
def test_an_empty_scan_is_refused(level: float) -> None:
    scan = np.full((4, 4, 4), level, np.float32)
    with pytest.raises(InputRefused, match="foreground has a mean of"):
        LowFieldScale(target=0.6).scale_of(scan)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(InputRefused, match="give a --mask"):
        LowFieldScale(target=0.6).scale_of(np.ones((4, 4, 4), np.float32), np.zeros((4, 4, 4), dtype=np.bool_))


# ---- high field


def test_learning_averages_the_landmarks(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    second = other_contrast(volume)
    each = [np.percentile(one[mask], PERCENTILES) for one in (volume, second)]
    learned = HighFieldStandard.learn([(volume, mask), (second, mask)])
    expected = np.mean([one / one[-1] for one in each], axis=0)
    np.testing.assert_allclose(learned.landmarks, expected, rtol=1e-5)
    assert learned.landmarks[-1] == 1
    assert learned.percentiles == PERCENTILES
    assert all(type(value) is float for value in learned.landmarks)
    assert np.abs(each[0] / each[0][-1] - expected).max() > 0.05  # the two really differ


def test_landmarks_come_to_the_standards(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    standard = HighFieldStandard.learn([(volume, mask), (other_contrast(volume, gamma=1.7), mask)])
    mapped = standard.apply(volume, mask)
    np.testing.assert_allclose(np.percentile(mapped[mask], PERCENTILES), standard.landmarks, atol=2e-4)
    assert mapped.dtype == np.float32


def test_the_map_is_monotone_and_keeps_zero(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    standard = HighFieldStandard.learn([(other_contrast(volume), mask)])
    mapped = standard.apply(volume, mask)
    order = np.argsort(volume.ravel(), kind="stable")
    assert (np.diff(mapped.ravel()[order].astype(np.float64)) >= -1e-6).all()
    assert mapped[volume == 0].max() == 0
    assert len(np.unique(mapped[mask])) > 100


def test_between_landmarks_the_map_is_linear_and_its_last_piece_goes_on() -> None:
    ramp = np.linspace(1, 1000, 1000, dtype=np.float32).reshape(10, 10, 10)
    mask = np.ones(ramp.shape, dtype=np.bool_)
    standard = HighFieldStandard(percentiles=(25.0, 75.0), landmarks=(0.5, 1.0))
    low, high = np.percentile(ramp, (25, 75))
    expected = np.where(ramp < low, 0.5 * ramp / low, 0.5 + 0.5 * (ramp - low) / (high - low))
    np.testing.assert_allclose(standard.apply(ramp, mask), expected.clip(0, HIGH_FIELD_LIMIT), atol=1e-5)
    assert expected.max() > 1.2  # past the last landmark


@pytest.mark.parametrize("gain", [1e-3, 37.0, 1000.0])
def test_the_scanners_gain_does_not_matter(gain: float, brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    standard = HighFieldStandard.learn([(other_contrast(volume), mask)])
    np.testing.assert_allclose(
        standard.apply(volume * np.float32(gain), mask), standard.apply(volume, mask), rtol=1e-3, atol=1e-5
    )
    learned = HighFieldStandard.learn([(other_contrast(volume, gain=gain), mask)])
    np.testing.assert_allclose(learned.landmarks, standard.landmarks, rtol=1e-4)


def test_another_contrast_comes_nearer(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, classes = brain
    second = other_contrast(volume)
    standard = HighFieldStandard.learn([(volume, mask)])
    before = np.abs(means(second / np.percentile(second[mask], 99), classes) - means(volume / 255, classes)).max()
    after = np.abs(means(standard.apply(second, mask), classes) - means(standard.apply(volume, mask), classes)).max()
    assert before > 0.08
    assert after < before / 10


def test_the_high_field_range_ends_at_its_limit() -> None:
    volume = np.random.default_rng(2).uniform(10, 20, SHAPE).astype(np.float32)
    volume[0, 0, :2] = 1e6, -50
    mask = np.ones(SHAPE, dtype=np.bool_)
    mapped = HighFieldStandard.learn([(volume, mask)]).apply(volume, mask)
    assert mapped[0, 0, 0] == mapped.max() == np.float32(HIGH_FIELD_LIMIT)
    assert mapped[0, 0, 1] == mapped.min() == 0


def test_zeros_inside_a_generous_mask_do_not_count(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    generous = np.ones_like(mask)
    assert HighFieldStandard.learn([(volume, generous)]) == HighFieldStandard.learn([(volume, mask)])


def test_without_a_mask_the_percentiles_are_those_above_the_threshold(bimodal: Array) -> None:
    standard = HighFieldStandard(percentiles=PERCENTILES, landmarks=tuple(np.linspace(0.3, 1, len(PERCENTILES))))
    bright = bimodal > otsu_threshold(bimodal)
    assert np.array_equal(standard.apply(bimodal), standard.apply(bimodal, bright))
    assert not np.allclose(standard.apply(bimodal), standard.apply(bimodal, np.ones(SHAPE, dtype=np.bool_)))


def test_a_volume_of_few_intensities_keeps_its_landmarks_apart() -> None:
    volume = np.repeat(np.float32([20, 60]), 32).reshape(4, 4, 4)
    mask = np.ones(volume.shape, dtype=np.bool_)
    standard = HighFieldStandard.learn([(volume, mask)])
    assert (np.diff(standard.landmarks) > 0).all()
    mapped: Any = standard.apply(volume, mask)
    np.testing.assert_allclose(mapped, volume / 60, atol=1e-4)


@pytest.mark.parametrize("where", ["no mask", "no signal"])
def test_a_brain_without_signal_is_refused(where: str) -> None:
    volume = np.zeros((4, 4, 4), np.float32) if where == "no signal" else np.ones((4, 4, 4), np.float32)
    mask = np.full((4, 4, 4), where == "no signal")
    with pytest.raises(InputRefused, match="no positive voxel inside the mask"):
        HighFieldStandard.learn([(volume, mask)])
