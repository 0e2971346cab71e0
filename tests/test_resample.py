from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter1d, map_coordinates

from lfmri_runtime.resample import FWHM_PER_SIGMA, apply_along, gaussian_matrix, regrid_matrix, spline_matrix

Array = npt.NDArray[Any]

LENGTHS = (2, 3, 5, 64)
# Both sides compute in float64; SciPy's recursive filter stops at 1e-15 of a sample.
ROUNDING = 1e-10


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def scipy_spline(samples: Array, positions: Array) -> Array:
    return np.asarray(map_coordinates(samples, positions[None], order=3, mode="mirror"))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_spline_is_scipys(length: int, rng: np.random.Generator) -> None:
    samples = rng.normal(size=length)
    positions = np.concatenate([rng.uniform(0, length - 1, 200), [0, length - 1]])
    found = spline_matrix(length, positions) @ samples
    np.testing.assert_allclose(found, scipy_spline(samples, positions), atol=ROUNDING)


@pytest.mark.parametrize("length", LENGTHS)
def test_spline_rows_sum_to_one(length: int, rng: np.random.Generator) -> None:
    matrix = spline_matrix(length, rng.uniform(0, length - 1, 200))
    assert matrix.shape == (200, length)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=ROUNDING)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_spline_goes_through_its_samples(length: int) -> None:
    np.testing.assert_array_equal(spline_matrix(length, np.arange(length, dtype=float)).round(12), np.eye(length))


def test_a_cubic_is_reproduced_away_from_the_ends() -> None:
    x = np.arange(64.0)
    positions = np.linspace(20, 44, 91)
    found = spline_matrix(64, positions) @ (x**3 - 50 * x**2)
    np.testing.assert_allclose(found, positions**3 - 50 * positions**2, rtol=1e-6)


def test_one_sample_is_a_constant() -> None:
    np.testing.assert_allclose(spline_matrix(1, np.zeros(3)), np.ones((3, 1)), atol=ROUNDING)
    np.testing.assert_allclose(gaussian_matrix(1, 1.3), [[1]], atol=ROUNDING)


@pytest.mark.parametrize("sigma", [0.4, 1.274, 2.548])
@pytest.mark.parametrize("length", [2, 5, 64])
def test_the_gaussian_is_scipys(length: int, sigma: float, rng: np.random.Generator) -> None:
    samples = rng.normal(size=length)
    expected = gaussian_filter1d(samples, sigma, mode="mirror", radius=int(np.ceil(4 * sigma)))
    matrix = gaussian_matrix(length, sigma)
    np.testing.assert_allclose(matrix @ samples, expected, atol=ROUNDING)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=ROUNDING)


def test_the_same_spacing_changes_nothing() -> None:
    assert regrid_matrix(20, 1.0, 20, 1.0) is None
    assert regrid_matrix(20, 1.0, 20, 1.0009) is None
    assert regrid_matrix(20, 1.0, 20, 1.0011) is not None
    shorter = regrid_matrix(20, 1.0, 18, 1.0)
    assert shorter is not None
    np.testing.assert_array_equal(shorter, np.eye(18, 20))


def test_a_finer_grid_is_the_plain_spline(rng: np.random.Generator) -> None:
    samples = rng.normal(size=12)
    matrix = regrid_matrix(12, 5.0, 56, 1.0)
    assert matrix is not None
    np.testing.assert_allclose(matrix @ samples, scipy_spline(samples, np.arange(56) / 5), atol=ROUNDING)


def test_a_coarser_grid_is_blurred_by_the_difference_in_resolution(rng: np.random.Generator) -> None:
    samples = rng.normal(size=96)
    matrix = regrid_matrix(96, 0.7, 42, 1.6)
    assert matrix is not None
    sigma = np.sqrt(1.6**2 - 0.7**2) / FWHM_PER_SIGMA / 0.7
    blurred = gaussian_filter1d(samples, sigma, mode="mirror", radius=int(np.ceil(4 * sigma)))
    np.testing.assert_allclose(matrix @ samples, scipy_spline(blurred, np.arange(42) * 1.6 / 0.7), atol=ROUNDING)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarser_grid_does_not_alias(factor: int) -> None:
    length = 256
    count = (length - 1) // factor + 1
    matrix = regrid_matrix(length, 1.0, count, float(factor))
    assert matrix is not None
    x = np.arange(length)
    above, below = (np.sin(2 * np.pi * cycles * x / factor) for cycles in (0.9, 0.1))
    inner = slice(4, -4)
    naive = spline_matrix(length, np.arange(count, dtype=float) * factor) @ above
    assert np.abs(naive[inner]).max() > 0.9  # without the blur it comes back whole, as a slow wave
    assert np.abs((matrix @ above)[inner]).max() < 0.16  # what a Gaussian of this width leaves, exp(-2 (pi s f)^2)
    assert np.abs((matrix @ below)[inner]).max() > 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_matrix_is_applied_along_its_axis(axis: int, rng: np.random.Generator) -> None:
    volume = rng.normal(size=(5, 6, 7)).astype(np.float32)
    matrix = rng.normal(size=(3, volume.shape[axis]))
    found = apply_along(volume, matrix, axis)
    letters = "abc"
    out = letters.replace(letters[axis], "n")
    np.testing.assert_allclose(found, np.einsum(f"n{letters[axis]},abc->{out}", matrix, volume), rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert apply_along(volume, None, axis) is volume
