from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
import numpy.typing as npt
import pytest
from skimage.filters import threshold_otsu
from sklearn.mixture import GaussianMixture

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.intensity import (
    HIGH_FIELD_LIMIT,
    HISTOGRAM_BINS,
    LOW_FIELD_LIMIT,
    STANDARD_GM,
    STANDARD_WM,
    HighFieldStandard,
    LowFieldScale,
    otsu_threshold,
)
from lfmri_runtime.tissue import BOUNDS, SHARES, STARTING_WIDTH, tissue_means

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


@pytest.fixture(scope="module")
def phantom() -> tuple[Array, Mask, tuple[float, float, float]]:
    """Zero outside, and three tissues of known means inside, far enough apart that a mixture finds them exactly."""
    rng = np.random.default_rng(3)
    means, sizes = (200.0, 600.0, 1000.0), (8_000, 24_000, 16_000)
    values = np.concatenate([rng.normal(mean, 40, size) for mean, size in zip(means, sizes, strict=True)])
    volume = np.zeros(64_000, np.float32)
    volume[: len(values)] = values
    return volume.reshape(SHAPE), (volume > 0).reshape(SHAPE), means


def sklearn_means(volume: Array, mask: Mask) -> npt.NDArray[np.float64]:
    values = volume[mask & (volume > 0)].astype(np.float64)
    low, high = np.percentile(values, BOUNDS)
    values = values[(values >= low) & (values <= high)][:, None]
    start = np.quantile(values, np.cumsum(SHARES) - np.array(SHARES) / 2)[:, None]
    mixture = GaussianMixture(
        3,
        covariance_type="tied",
        weights_init=SHARES,
        means_init=start,
        precisions_init=[[1 / (STARTING_WIDTH**2 * values.var())]],
        init_params="random_from_data",
        tol=1e-9,
        max_iter=2000,
    )
    found: npt.NDArray[np.float64] = mixture.fit(values).means_[:, 0]
    return found


def test_the_tissue_means_are_found(phantom: tuple[Array, Mask, tuple[float, float, float]]) -> None:
    volume, mask, (_, gm, wm) = phantom
    assert tissue_means(volume, mask) == pytest.approx((gm, wm), rel=3e-3)


@pytest.mark.parametrize("contrast", ["its own", "another"])
def test_the_tissue_means_are_scikit_learns(contrast: str, brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    image = volume if contrast == "its own" else other_contrast(volume)
    _, gm, wm = sklearn_means(image, mask)
    assert tissue_means(image, mask) == pytest.approx((gm, wm), rel=2e-3)


def test_the_map_is_two_lines_that_meet_in_grey_matter(phantom: tuple[Array, Mask, tuple[float, float, float]]) -> None:
    volume, mask, _ = phantom
    gm, wm = tissue_means(volume, mask)
    standard = HighFieldStandard(gm=0.5, wm=0.9)
    probe = volume.copy()
    probe[~mask] = np.linspace(0, 1.4 * wm, np.count_nonzero(~mask))
    x = probe.astype(np.float64)
    expected = np.where(x < gm, 0.5 * x / gm, 0.5 + 0.4 * (x - gm) / (wm - gm))
    mapped = standard.apply(probe, mask)
    np.testing.assert_allclose(mapped, expected.clip(0, HIGH_FIELD_LIMIT), atol=1e-5)
    assert expected.max() > HIGH_FIELD_LIMIT
    assert mapped.dtype == np.float32


def test_the_map_is_monotone_and_keeps_zero(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    mapped = HighFieldStandard().apply(volume, mask)
    assert mapped[~mask].max() == 0
    in_order = mapped.ravel()[np.argsort(volume, axis=None)]
    assert (np.diff(in_order) >= 0).all()
    assert (np.diff(np.unique(mapped[mapped < HIGH_FIELD_LIMIT])) > 0).all()


@pytest.mark.parametrize("gain", [1e-3, 37.0, 1000.0])
def test_the_scanners_gain_does_not_matter(gain: float, brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    standard = HighFieldStandard()
    np.testing.assert_allclose(
        standard.apply(volume * np.float32(gain), mask), standard.apply(volume, mask), rtol=1e-3, atol=1e-4
    )


def test_another_contrast_comes_to_the_same_tissue_means(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, classes = brain
    tissues = {name: classes[name] for name in ("gm", "wm")}
    second = other_contrast(volume)
    before = np.abs(means(second / second[mask].max(), tissues) - means(volume / volume.max(), tissues)).max()
    first, after = (means(HighFieldStandard().apply(one, mask), tissues) for one in (volume, second))
    assert before > 0.08
    assert np.abs(first - after).max() < before / 4
    np.testing.assert_allclose(
        first, (STANDARD_GM, STANDARD_WM), atol=0.1
    )  # the surest voxels of white matter are its brightest


def test_the_high_field_range_ends_at_its_limit(phantom: tuple[Array, Mask, tuple[float, float, float]]) -> None:
    volume, mask, _ = phantom
    spiked = volume.copy()
    spiked[-1, -1, -2:] = 1e6, -50
    mapped = HighFieldStandard().apply(spiked, mask)
    assert mapped[-1, -1, -2] == mapped.max() == np.float32(HIGH_FIELD_LIMIT)
    assert mapped[-1, -1, -1] == mapped.min() == 0


def test_zeros_inside_a_generous_mask_do_not_count(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    assert tissue_means(volume, np.ones_like(mask)) == tissue_means(volume, mask)


def test_without_a_mask_the_means_are_those_above_the_threshold(brain: tuple[Array, Mask, dict[str, Mask]]) -> None:
    volume, mask, _ = brain
    standard, bright = HighFieldStandard(), volume > otsu_threshold(volume)
    assert np.array_equal(standard.apply(volume), standard.apply(volume, bright))
    assert not np.allclose(standard.apply(volume), standard.apply(volume, mask), rtol=1e-4)


@pytest.mark.parametrize("levels", [(), (70,), (20, 60)])
def test_a_brain_without_three_intensities_is_refused(levels: tuple[int, ...]) -> None:
    volume = np.zeros((4, 4, 4), np.float32)
    for number, level in enumerate(levels):
        volume[number] = level
    with pytest.raises(InputRefused, match=f"holds {len(levels)} different intensities inside the mask"):
        tissue_means(volume, np.ones(volume.shape, dtype=np.bool_))


def test_an_empty_brain_mask_is_refused() -> None:
    with pytest.raises(InputRefused, match="holds 0 different intensities"):
        HighFieldStandard().apply(np.ones((4, 4, 4), np.float32), np.zeros((4, 4, 4), dtype=np.bool_))
