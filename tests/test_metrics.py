"""PSNR and SSIM against closed forms, scikit-image, and SSIM written out from the paper."""

import math
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lfmri_runtime import metrics
from lfmri_runtime.errors import BackendMissing, InputRefused

Array = NDArray[np.float32]

#: The two ways of computing differ by the order of float64 sums alone.
ROUNDING = 1e-12


@pytest.fixture
def pair() -> tuple[Array, Array]:
    generator = np.random.default_rng(3)
    reference = gaussian_filter(generator.random((40, 52)), 2).astype(np.float32)
    reference = (reference - reference.min()) / np.ptp(reference)
    return (reference + 0.05 * generator.standard_normal(reference.shape)).astype(np.float32), reference


@pytest.fixture
def disc() -> NDArray[np.bool_]:
    i, j = np.ogrid[:40, :52]
    return (i - 20) ** 2 + (j - 26) ** 2 < 12**2


@pytest.mark.parametrize(("error", "data_range"), [(0.1, 1.0), (0.01, 1.0), (0.5, 4095.0)])
def test_psnr_of_a_constant_error(error: float, data_range: float) -> None:
    reference = np.full((12, 12), 0.25 * data_range)
    expected = 20 * math.log10(data_range / error)
    assert metrics.psnr(reference + error, reference, data_range=data_range) == pytest.approx(expected, rel=1e-9)


def test_psnr_of_equal_images_is_infinite(pair: tuple[Array, Array], disc: NDArray[np.bool_]) -> None:
    _, reference = pair
    assert metrics.psnr(reference, reference) == math.inf
    outside = np.where(disc, reference, reference + 1).astype(np.float32)
    assert metrics.masked_psnr(outside, reference, disc) == math.inf
    assert math.isfinite(metrics.psnr(outside, reference))


def test_psnr_is_scikit_images(pair: tuple[Array, Array], disc: NDArray[np.bool_]) -> None:
    image, reference = (x.astype(np.float64) for x in pair)
    assert metrics.psnr(*pair) == pytest.approx(peak_signal_noise_ratio(reference, image, data_range=1.0), rel=ROUNDING)
    inside = peak_signal_noise_ratio(reference[disc], image[disc], data_range=1.0)
    assert metrics.masked_psnr(*pair, disc) == pytest.approx(inside, rel=ROUNDING)


def test_the_data_range_is_never_guessed(pair: tuple[Array, Array]) -> None:
    image, reference = pair
    doubled = metrics.psnr(image, reference, data_range=2.0)
    assert doubled == pytest.approx(metrics.psnr(image, reference) + 20 * math.log10(2), rel=1e-9)
    assert metrics.ssim(image, reference, data_range=2.0) > metrics.ssim(image, reference)


def test_ssim_of_constant_images(disc: NDArray[np.bool_]) -> None:
    a, b, c_1 = 0.3, 0.7, 0.01**2
    expected = (2 * a * b + c_1) / (a**2 + b**2 + c_1)
    image, reference = np.full(disc.shape, a), np.full(disc.shape, b)
    np.testing.assert_allclose(metrics.ssim_map(image, reference), expected, rtol=1e-9)
    assert metrics.ssim(image, reference) == pytest.approx(expected)
    assert metrics.masked_ssim(image, reference, disc) == pytest.approx(expected)


def wang(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wang et al. 2004, equation 13, with K_1 = 0.01, K_2 = 0.03 and an 11 x 11 Gaussian window."""

    def mean(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(z, 1.5, radius=5)

    c_1, c_2 = 0.01**2, 0.03**2
    m_x, m_y = mean(x), mean(y)
    v_x, v_y, v_xy = mean(x * x) - m_x**2, mean(y * y) - m_y**2, mean(x * y) - m_x * m_y
    return ((2 * m_x * m_y + c_1) * (2 * v_xy + c_2)) / ((m_x**2 + m_y**2 + c_1) * (v_x + v_y + c_2))


def test_ssim_is_the_papers(pair: tuple[Array, Array], disc: NDArray[np.bool_]) -> None:
    expected = wang(*(x.astype(np.float64) for x in pair))
    np.testing.assert_allclose(metrics.ssim_map(*pair), expected, atol=1e-9)
    assert metrics.ssim(*pair) == pytest.approx(expected[5:-5, 5:-5].mean(), rel=1e-9)
    assert metrics.masked_ssim(*pair, disc) == pytest.approx(expected[disc].mean(), rel=1e-9)


def test_ssim_is_scikit_images(pair: tuple[Array, Array]) -> None:
    image, reference = (x.astype(np.float64) for x in pair)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    mean, full = structural_similarity(image, reference, full=True, **options)
    assert metrics.ssim(*pair) == pytest.approx(mean, rel=ROUNDING)
    both = metrics.ssim_with_map(*pair)
    assert both[0] == pytest.approx(mean, rel=ROUNDING)
    np.testing.assert_allclose(both[1], full, rtol=ROUNDING)


def test_blur_lowers_both(pair: tuple[Array, Array]) -> None:
    _, reference = pair
    blurred = [gaussian_filter(reference, sigma) for sigma in (0.5, 1, 2, 4)]
    for score in (metrics.psnr, metrics.ssim):
        values = [score(image, reference) for image in blurred]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim, metrics.ssim_map, metrics.ssim_with_map])
def test_what_has_no_score_is_refused(score: object) -> None:
    assert callable(score)
    fine, hole = np.zeros((20, 20)), np.full((20, 20), np.nan)
    with pytest.raises(InputRefused, match="cannot be compared"):
        score(fine, np.zeros((20, 21)))
    with pytest.raises(InputRefused, match="cannot be compared"):
        score(np.zeros((0, 20)), np.zeros((0, 20)))
    with pytest.raises(InputRefused, match="not finite"):
        score(hole, fine)
    with pytest.raises(InputRefused, match="not finite"):
        score(fine, hole)
    for data_range in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputRefused, match="data range"):
            score(fine, fine, data_range=data_range)


@pytest.mark.parametrize("shape", [(10, 40), (20, 20, 20), (200,)])
def test_ssim_takes_slices_of_a_windows_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputRefused, match="at least 11 x 11"):
        metrics.ssim(np.zeros(shape), np.zeros(shape))
    assert metrics.ssim(np.zeros((11, 11)), np.zeros((11, 11))) == 1.0


@pytest.mark.parametrize("mask", [np.zeros((20, 20), bool), np.ones((20, 21), bool)])
def test_masks_that_do_not_fit_are_refused(mask: NDArray[np.bool_]) -> None:
    image = np.zeros((20, 20))
    for score in (metrics.masked_psnr, metrics.masked_ssim):
        with pytest.raises(InputRefused, match="the mask has shape"):
            score(image, image, mask)


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(BackendMissing, match=r"scikit-image is not installed.*pip install 'lfmri\[evaluate\]'"):
        metrics.ssim(np.zeros((20, 20)), np.zeros((20, 20)))
