from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.spatial import distance

from lfmri_trainer.simulation import draws
from lfmri_trainer.simulation.draws import PairParameters, draw_pair, draw_snr
from lfmri_trainer.simulation.presets import (
    CONTRAST_BOUND,
    IN_DISTRIBUTION_BOUND,
    OUT_OF_DISTRIBUTION_MEAN,
    PRESETS,
    T1W_COVARIANCE,
    T1W_MEAN,
    UltraLowField,
    mahalanobis,
)

Array = npt.NDArray[np.float64]

DRAWS = 100_000
PRECISION = np.linalg.inv(np.asarray(T1W_COVARIANCE))


def draw(**changes: Any) -> PairParameters:
    given: dict[str, Any] = {"preset": "siqt-k4", "subject": "anna", "split": "train", "thick_axis": "S"}
    given |= {"fixed": "GM", "voxel_sizes": (0.7, 0.7, 0.7), "index": 0, "seed": 0}
    return draw_pair(**(given | changes))


def snr_of(pairs: Iterable[PairParameters]) -> Array:
    return np.array([(pair.snr_wm, pair.snr_gm) for pair in pairs])


@pytest.fixture(scope="module")
def in_distribution() -> Array:
    rng = np.random.default_rng(0)
    return np.array([draw_snr(rng, in_distribution=True) for _ in range(DRAWS)])


@pytest.fixture(scope="module")
def out_of_distribution() -> Array:
    rng = np.random.default_rng(1)
    return np.array([draw_snr(rng, in_distribution=False) for _ in range(DRAWS // 5)])


@pytest.fixture(scope="module")
def ultra_low_field() -> list[PairParameters]:
    return [draw(preset="ultra-low-field", index=i, thick_axis="random") for i in range(500)]


def test_noisy_draws_keep_the_contrast_and_stay_apart_from_out_of_distribution() -> None:
    snr = snr_of(draw(preset="siqt-k4-noisy", index=i) for i in range(500))
    contrast, usual = (s[:, 0] / s[:, 1] for s in (snr, snr_of(draw(index=i) for i in range(500))))
    assert contrast.mean() == pytest.approx(usual.mean(), abs=0.02)
    assert contrast.std() == pytest.approx(usual.std(), rel=0.2)
    # 64.5 divided by a uniform factor from 1 to 3: the mean of its inverse is log(3) / 2.
    assert snr[:, 0].mean() == pytest.approx(64.5 * np.log(3) / 2, rel=0.05)
    assert snr[:, 0].min() > 11
    assert np.quantile(snr[:, 0], 0.05) > 18


def test_the_distance_is_mahalanobis() -> None:
    points = np.random.default_rng(2).uniform(5, 90, (50, 2))
    expected = [distance.mahalanobis(point, T1W_MEAN, PRECISION) for point in points]
    np.testing.assert_allclose(mahalanobis(points), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("wm", "gm", "expected"), [(63, 50, 0.95), (61, 53, 0.80), (45, 40, 2.52), (14, 12, 5.85), (64.5, 54.14, 0)]
)
def test_the_fixed_points_of_older_work_lie_where_they_should(wm: float, gm: float, expected: float) -> None:
    assert float(mahalanobis(np.array([wm, gm]))) == pytest.approx(expected, abs=0.005)


def test_the_line_of_equal_snr_is_3_383_away() -> None:
    snr = np.linspace(0, 150, 150_001)
    nearest = mahalanobis(np.stack([snr, snr], axis=1)).min()
    assert nearest == pytest.approx(CONTRAST_BOUND, abs=5e-4)
    assert nearest > IN_DISTRIBUTION_BOUND


def test_every_in_distribution_draw_has_white_above_grey_within_the_bound(in_distribution: Array) -> None:
    assert (in_distribution[:, 0] > in_distribution[:, 1]).all()
    distances = mahalanobis(in_distribution)
    assert distances.max() <= IN_DISTRIBUTION_BOUND
    # The squared distance is exponential of mean 2, cut off at the bound.
    squared = stats.truncexpon(IN_DISTRIBUTION_BOUND**2 / 2, scale=2)
    assert stats.kstest(distances**2, squared.cdf).pvalue > 0.001


def test_in_distribution_moments_are_the_published_ones(in_distribution: Array) -> None:
    # Cutting a Gaussian off at a Mahalanobis distance leaves its mean and shrinks its covariance by this factor.
    bound = IN_DISTRIBUTION_BOUND**2
    shrunk = stats.chi2(4).cdf(bound) / stats.chi2(2).cdf(bound)
    assert shrunk == pytest.approx(0.95, abs=0.01)
    # 10^5 draws: standard errors are 0.03 of the mean and 0.5 % of the covariance.
    np.testing.assert_allclose(in_distribution.mean(axis=0), T1W_MEAN, atol=0.12)
    np.testing.assert_allclose(np.cov(in_distribution.T), shrunk * np.asarray(T1W_COVARIANCE), rtol=0.02)


def test_every_out_of_distribution_draw_keeps_its_contrast_beyond_the_bound(out_of_distribution: Array) -> None:
    assert (out_of_distribution[:, 0] > out_of_distribution[:, 1]).all()
    assert mahalanobis(out_of_distribution).min() > CONTRAST_BOUND
    assert out_of_distribution.min() > 2
    np.testing.assert_allclose(out_of_distribution.mean(axis=0), OUT_OF_DISTRIBUTION_MEAN, atol=0.5)
    # As spread, relative to its centre, as the published one.
    relative = out_of_distribution.std(axis=0) / OUT_OF_DISTRIBUTION_MEAN
    np.testing.assert_allclose(relative, np.sqrt(np.diag(T1W_COVARIANCE)) / T1W_MEAN, rtol=0.1)


def test_draws_that_came_too_near_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Around (14, 12) hardly a draw is near; around (38, 35), 3.44 away, four in ten are.
    monkeypatch.setattr(draws, "OUT_OF_DISTRIBUTION_MEAN", (38.0, 35.0))
    rng = np.random.default_rng(3)
    snr = np.array([draw_snr(rng, in_distribution=False) for _ in range(500)])
    assert (snr[:, 0] > snr[:, 1]).all()
    assert CONTRAST_BOUND < mahalanobis(snr).min() < CONTRAST_BOUND + 0.1


def test_a_draw_is_numpys_own_multivariate_normal() -> None:
    rng, twin = np.random.default_rng(5), np.random.default_rng(5)
    expected = twin.multivariate_normal(T1W_MEAN, T1W_COVARIANCE)
    np.testing.assert_allclose(draw_snr(rng, in_distribution=True), expected, rtol=1e-12)
    assert rng.bit_generator.state == twin.bit_generator.state


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_pair_depends_on_its_arguments_alone(preset: str) -> None:
    forwards = [draw(preset=preset, subject=name, index=i) for name in ("anna", "ben") for i in range(3)]
    backwards = [draw(preset=preset, subject=name, index=i) for name in ("ben", "anna") for i in (2, 1, 0)]
    assert sorted(forwards, key=lambda pair: pair.pair) == sorted(backwards, key=lambda pair: pair.pair)
    assert len({pair.pair for pair in forwards}) == len({pair.seed for pair in forwards}) == 6
    assert len({(pair.snr_wm, pair.snr_gm) for pair in forwards}) == 6


@pytest.mark.parametrize("change", [{"seed": 1}, {"index": 1}, {"subject": "ben"}, {"preset": "siqt-k8"}])
def test_another_seed_index_subject_or_preset_is_another_draw(change: dict[str, Any]) -> None:
    first, other = draw(), draw(**change)
    assert (first.snr_wm, first.snr_gm) != (other.snr_wm, other.snr_gm)
    assert first.seed != other.seed


def test_split_axis_and_fixed_tissue_change_nothing_else() -> None:
    first, other = draw(), draw(split="test", thick_axis="R", fixed="WM")
    assert (other.split, other.thick_axis, other.fixed) == ("test", "R", "WM")
    assert (first.snr_wm, first.snr_gm, first.seed, first.pair) == (other.snr_wm, other.snr_gm, other.seed, other.pair)


def test_a_random_thick_axis_is_each_axis_about_as_often() -> None:
    axes = [draw(thick_axis="random", index=i).thick_axis for i in range(600)]
    # A third of 600 each; the standard deviation is 11.5.
    assert all(abs(axes.count(axis) - 200) < 50 for axis in "RAS")


@pytest.mark.parametrize(
    ("preset", "spacing", "thickness", "near"),
    [("siqt-k4", 4, 3, True), ("siqt-k8", 8, 6, True), ("siqt-k4-ood", 4, 3, False), ("siqt-k8-ood", 8, 6, False)],
)
def test_siqt_presets(preset: str, spacing: float, thickness: float, near: bool) -> None:
    pairs = [draw(preset=preset, index=i) for i in range(200)]
    assert {(pair.spacing, pair.thickness, pair.anatomy) for pair in pairs} == {(spacing, thickness, "brain")}
    assert {(pair.noise, pair.in_plane, pair.bias) for pair in pairs} == {("gaussian", 0, 0)}
    snr = snr_of(pairs)
    assert (snr[:, 0] > snr[:, 1]).all()
    np.testing.assert_allclose([pair.distance for pair in pairs], mahalanobis(snr), atol=1e-6)
    assert all((pair.distance <= IN_DISTRIBUTION_BOUND) is near for pair in pairs)
    assert all((pair.distance > CONTRAST_BOUND) is not near for pair in pairs)


def test_ultra_low_field_draws_fill_their_ranges(ultra_low_field: list[PairParameters]) -> None:
    ranges = UltraLowField()
    columns = {
        "spacing": (ranges.spacing, [pair.spacing * 0.7 for pair in ultra_low_field]),
        "snr_wm": (ranges.snr_wm, [pair.snr_wm for pair in ultra_low_field]),
        "gm_ratio": (ranges.gm_ratio, [pair.snr_gm / pair.snr_wm for pair in ultra_low_field]),
        "in_plane": (ranges.in_plane, [pair.in_plane for pair in ultra_low_field]),
        "bias": (ranges.bias, [pair.bias for pair in ultra_low_field]),
    }
    for name, ((low, high), values) in columns.items():
        width = high - low
        assert low - 1e-5 <= min(values) < low + 0.05 * width, name
        assert high + 1e-5 >= max(values) > high - 0.05 * width, name
        assert stats.kstest(values, stats.uniform(low, width).cdf).pvalue > 0.001, name


def test_ultra_low_field_slices_have_no_gap_and_a_head(ultra_low_field: list[PairParameters]) -> None:
    assert all(pair.thickness == pair.spacing for pair in ultra_low_field)
    assert {(pair.anatomy, pair.noise) for pair in ultra_low_field} == {("head", "rician")}
    assert all(pair.snr_wm > pair.snr_gm for pair in ultra_low_field)


def test_ultra_low_field_spacing_is_in_mm_whatever_the_voxels() -> None:
    fine, coarse = (draw(preset="ultra-low-field", voxel_sizes=(3.0, 3.0, size)) for size in (0.5, 1.0))
    assert fine.spacing == pytest.approx(2 * coarse.spacing, abs=2e-6)
    assert (fine.in_plane, fine.snr_wm, fine.seed) == (coarse.in_plane, coarse.snr_wm, coarse.seed)
