from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import nilearn
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.signal import resample

from lfmri_runtime.errors import InputRefused
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, read_volume, subject_path
from lfmri_trainer.simulation.scanner import add_noise, bias_field, simulate, thick_slices, truncate
from lfmri_trainer.simulation.simulate import SimulationSettings, simulate_folder
from lfmri_trainer.tissue import Anatomy

from .phantom import INTENSITIES, SHAPE, block, phantom, save_subject

Array = npt.NDArray[np.float32]

VOXEL = 0.7  # mm, of the Human Connectome Project
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
# Blocks are blurred at their faces; this far inside, the widest profile used here leaves them pure.
MARGIN = 4
SIQT = PairParameters(
    pair="phantom_siqt-k4_000",
    subject="phantom",
    split="train",
    preset="siqt-k4",
    anatomy="brain",
    thick_axis="S",
    fixed="GM",
    spacing=4.0,
    thickness=3.0,
    snr_wm=64.5,
    snr_gm=54.14,
    distance=0.0,
    noise="gaussian",
    in_plane=0.0,
    bias=0.0,
    seed=1,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def mean_of(scan: Array, tissue: str) -> float:
    """Mean deep inside a block of the phantom, where slices lie at every fourth voxel along S."""
    return float(scan[block(tissue, margin=MARGIN)[:, :, ::4][:, :, : scan.shape[2]]].mean(dtype=np.float64))


# ---- slice profile and position


@pytest.mark.parametrize(("thickness", "millimetres"), [(3, 2.1), (6, 4.2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_line_comes_out_as_wide_as_the_slice(thickness: int, millimetres: float, axis: int) -> None:
    line = np.zeros([61 if a == axis else 3 for a in range(3)], np.float32)
    line[tuple(30 if a == axis else 1 for a in range(3))] = 1
    fine = 0.02  # voxels, between samples of the profile
    profiles = np.moveaxis(thick_slices(line, axis=axis, spacing=fine, thickness=thickness), axis, -1)
    profile = profiles[1, 1].astype(np.float64)
    assert np.count_nonzero(profiles) == np.count_nonzero(profile)  # no blur in plane
    above = np.flatnonzero(profile >= profile.max() / 2)
    assert (above[-1] - above[0]) * fine * VOXEL == pytest.approx(millimetres, rel=0.01)
    x = np.arange(len(profile)) * fine
    centre = np.average(x, weights=profile)
    sigma = np.sqrt(np.average((x - centre) ** 2, weights=profile))
    assert centre == pytest.approx(30, abs=0.01)
    assert sigma * FWHM_PER_SIGMA * VOXEL == pytest.approx(millimetres, rel=0.01)


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_i_sits_at_voxel_i_times_the_factor(factor: int, axis: int) -> None:
    shape = [6, 6, 6]
    shape[axis] = 81
    ramp = np.broadcast_to(np.indices(shape)[axis], shape).astype(np.float32)
    slices = thick_slices(ramp, axis=axis, spacing=factor, thickness=0.75 * factor)
    count = 80 // factor + 1
    assert slices.shape[axis] == count
    inner = np.moveaxis(slices, axis, -1)[..., 3:-3]  # the ends see the edge of the volume
    np.testing.assert_allclose(inner - np.arange(count)[3:-3] * factor, 0, atol=1e-3)


@pytest.mark.parametrize(("length", "count"), [(8, 2), (9, 3), (12, 3), (13, 4)])
def test_no_slice_lies_beyond_the_last_voxel(length: int, count: int) -> None:
    assert thick_slices(np.ones((2, 2, length), np.float32), axis=2, spacing=4, thickness=3).shape[2] == count


@pytest.mark.parametrize("spacing", [4.0, 5.714286, 2.5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_between_voxels_are_scipys_cubic_spline(spacing: float, axis: int) -> None:
    volume = rng().uniform(0, 100, (17, 20, 23)).astype(np.float32)
    found = thick_slices(volume, axis=axis, spacing=spacing, thickness=3)
    blurred = gaussian_filter1d(volume.astype(np.float64), 3 / FWHM_PER_SIGMA, axis=axis, mode="nearest")
    places = np.indices(found.shape).astype(np.float64)
    places[axis] *= spacing
    np.testing.assert_allclose(found, map_coordinates(blurred, places, order=3, mode="mirror"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axis", ["R", "A", "S"])
def test_the_affine_follows_the_slices(axis: str) -> None:
    anatomy = phantom(voxel_size=VOXEL)
    scan = simulate(anatomy, replace(SIQT, thick_axis=axis))
    number = "RAS".index(axis)
    scale = np.ones(4)
    scale[number] = 4
    np.testing.assert_allclose(scan.affine, anatomy.affine @ np.diag(scale), atol=1e-12)
    assert scan.data.shape == tuple((n - 1) // 4 + 1 if a == number else n for a, n in enumerate(SHAPE))
    assert scan.data.dtype == np.float32
    assert anatomy.affine[number, number] == VOXEL  # the subject's own stays as it is


# ---- contrast and noise


@pytest.fixture(scope="module")
def mni() -> Anatomy:
    """The middle third of nilearn's MNI152 average, 1 mm, with its maps; what they leave of the brain is CSF."""
    source = Path(nilearn.__file__).parent / "datasets" / "data"
    names = {kind: source / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
    images = {kind: nib.load(path) for kind, path in names.items()}
    t1, gm, wm = (images[kind].get_fdata(dtype=np.float32)[60:120] / np.float32(255) for kind in ("t1", "gm", "wm"))
    mask = t1 > 0
    csf = (mask - gm - wm).clip(0, 1).astype(np.float32)
    return Anatomy(t1 * 700, None, mask, gm, wm, csf, images["t1"].affine, (1.0, 1.0, 1.0), "given")


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("fixed", ["GM", "WM"])
def test_the_drawn_snr_is_found_in_the_scan(mni: Anatomy, factor: int, fixed: str) -> None:
    drawn = replace(SIQT, spacing=float(factor), thickness=0.75 * factor, fixed=fixed, snr_wm=61.0, snr_gm=49.0)
    scan = simulate(mni, drawn)
    twin = simulate(mni, replace(drawn, seed=2))  # all but the noise is the same
    sigma = float(np.std(scan.data - twin.data, dtype=np.float64) / np.sqrt(2))
    assert scan.sigma == pytest.approx(sigma, rel=0.005)
    for tissue, expected in ((mni.wm, 61.0), (mni.gm, 49.0)):
        pure = gaussian_filter1d(tissue, 0.75 * factor / FWHM_PER_SIGMA, axis=2)[:, :, ::factor] > 0.9
        assert scan.data[pure].mean(dtype=np.float64) / sigma == pytest.approx(expected, rel=0.03)
    background = scan.data[~mni.mask.any(axis=2)]
    assert abs(background.mean(dtype=np.float64)) < 4 * sigma / np.sqrt(background.size)
    assert background.std(dtype=np.float64) == pytest.approx(sigma, rel=0.01)
    assert stats.kstest(background.ravel()[:20_000] / sigma, "norm").pvalue > 0.001


@pytest.mark.parametrize(("fixed", "other"), [("GM", "WM"), ("WM", "GM")])
def test_one_tissue_keeps_its_intensity_and_the_other_takes_the_ratio(fixed: str, other: str) -> None:
    drawn = replace(SIQT, fixed=fixed, snr_wm=60.0, snr_gm=30.0)
    scan = simulate(phantom(), drawn)
    ratio = {"WM": 60.0 / 30.0, "GM": 30.0 / 60.0}[other]
    assert mean_of(scan.data, fixed.lower()) == pytest.approx(INTENSITIES[fixed.lower()], rel=0.01)
    assert mean_of(scan.data, other.lower()) == pytest.approx(ratio * INTENSITIES[fixed.lower()], rel=0.01)
    # Pure voxels at a block's faces are a few per cent darker, and count in the means that the noise is made from.
    assert scan.sigma == pytest.approx(INTENSITIES[fixed.lower()] / {"WM": 60, "GM": 30}[fixed], rel=0.02)


@pytest.mark.parametrize("fixed", ["GM", "WM"])
def test_csf_is_not_rescaled(fixed: str) -> None:
    scan = simulate(phantom(), replace(SIQT, fixed=fixed, snr_wm=600.0, snr_gm=300.0))
    inside = block("csf", margin=3)[:, :, ::4][:, :, : scan.data.shape[2]]
    assert scan.data[inside].mean() == pytest.approx(INTENSITIES["csf"], rel=0.01)


def test_what_is_in_no_map_becomes_zero_under_the_noise() -> None:
    anatomy = phantom()
    odd = anatomy.image_brain.copy()
    odd[26:30] = 500  # bright, and in no map
    scan = simulate(replace(anatomy, image_brain=odd), SIQT)
    there = scan.data[26:30]
    assert abs(there.mean()) < 4 * scan.sigma / np.sqrt(there.size)
    assert stats.kstest(there.ravel() / scan.sigma, "norm").pvalue > 0.001
    assert (there < 0).any()  # real noise, not magnitude


def test_a_head_keeps_what_is_in_no_map() -> None:
    head, brain = (simulate(phantom(), replace(SIQT, anatomy=kind)) for kind in ("head", "brain"))
    scalp = block("scalp")[:, :, ::4].copy()
    scalp[:, :, :2] = scalp[:, :, -2:] = False
    assert head.data[scalp].mean() == pytest.approx(INTENSITIES["scalp"], rel=0.01)
    assert abs(brain.data[scalp].mean()) < 1
    assert mean_of(head.data, "wm") == pytest.approx(mean_of(brain.data, "wm"), rel=1e-3)


def test_a_subject_without_a_head_gives_its_brain() -> None:
    anatomy = replace(phantom(), image_head=None)
    head, brain = (simulate(anatomy, replace(SIQT, anatomy=kind)).data for kind in ("head", "brain"))
    assert np.array_equal(head, brain)


def test_the_same_parameters_give_the_same_scan() -> None:
    full = replace(SIQT, anatomy="head", noise="rician", in_plane=1.5, bias=0.2, spacing=5.123456)
    first, again, other = (simulate(phantom(), replace(full, seed=seed)).data for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_little_pure_tissue_is_refused() -> None:
    anatomy = phantom()
    thin = np.zeros_like(anatomy.gm)
    thin[14:25, 4:19, 10:12] = 1
    with pytest.raises(InputRefused, match=r"phantom has 0 voxels of GM above 0\.9 .* at least 10"):
        simulate(replace(anatomy, gm=thin), SIQT)


def test_rician_noise_is_the_magnitude_of_complex_noise() -> None:
    shape = (60, 60, 60)
    for level in (0.0, 1.5, 6.0):
        image = np.full(shape, level * 7, np.float32)
        noisy = add_noise(image, sigma=7.0, kind="rician", rng=rng(4))
        assert noisy.dtype == np.float32
        assert noisy.min() >= 0
        law = stats.rice(level, scale=7.0)
        assert noisy.mean(dtype=np.float64) == pytest.approx(law.mean(), rel=0.01)
        assert noisy.std(dtype=np.float64) == pytest.approx(law.std(), rel=0.01)
        assert stats.kstest(noisy.ravel()[:20_000].astype(np.float64), law.cdf).pvalue > 0.001


def test_a_rician_background_is_rayleigh() -> None:
    scan = simulate(phantom(), replace(SIQT, noise="rician", snr_wm=20.0, snr_gm=16.0))
    background = scan.data[26:].astype(np.float64)
    # 3672 voxels: the mean's standard error is 0.9 %.
    assert background.mean() == pytest.approx(scan.sigma * np.sqrt(np.pi / 2), rel=0.04)
    assert stats.kstest(background.ravel(), stats.rayleigh(scale=scan.sigma).cdf).pvalue > 0.001
    assert mean_of(scan.data, "wm") == pytest.approx(stats.rice(20, scale=scan.sigma).mean(), rel=0.02)


# ---- k-space truncation


def wave(cycles: float, length: int, phase: float = 0.4) -> Array:
    values = np.cos(2 * np.pi * cycles * np.arange(length) / length + phase)
    return np.broadcast_to(values, (2, 3, length)).astype(np.float32)


@pytest.mark.parametrize("kept", [40, 41])
def test_truncation_keeps_what_is_below_the_cut(kept: int) -> None:
    length = 96
    short, ratio = truncate(wave(7, length), axis=2, affine=np.eye(4), voxel_size=length / kept)
    assert short.shape == (2, 3, kept)
    assert short.dtype == np.float32
    assert ratio == pytest.approx(length / kept)
    # The same wave at the new voxels, voxel 0 in place: neither amplitude nor phase has moved.
    expected = np.cos(2 * np.pi * 7 * np.arange(kept) * ratio / length + 0.4)
    np.testing.assert_allclose(short, np.broadcast_to(expected, short.shape), atol=1e-5)


@pytest.mark.parametrize("kept", [40, 41])
def test_truncation_loses_what_is_above_the_cut(kept: int) -> None:
    short, _ = truncate(wave(21, 96), axis=2, affine=np.eye(4), voxel_size=96 / kept)
    assert np.abs(short).max() < 1e-5


@pytest.mark.parametrize("kept", [40, 41])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_truncation_is_scipys_fourier_resampling(kept: int, axis: int) -> None:
    shape = [5, 5, 5]
    shape[axis] = 96
    image = rng(6).uniform(0, 100, shape).astype(np.float32)
    short, _ = truncate(image, axis=axis, affine=np.diag([0.7, 0.7, 0.7, 1]), voxel_size=0.7 * 96 / kept)
    np.testing.assert_allclose(short, resample(image.astype(np.float64), kept, axis=axis), rtol=1e-4, atol=1e-3)


def test_an_edge_rings_by_nine_per_cent() -> None:
    box = np.zeros((1, 1, 2000), np.float32)
    box[:, :, 500:1500] = 1
    short, _ = truncate(box, axis=2, affine=np.eye(4), voxel_size=10)
    fine = resample(short[0, 0].astype(np.float64), 8000)
    assert fine.max() - 1 == pytest.approx(0.0895, abs=0.006)  # Gibbs: (2 / pi) Si(pi) - 1, half of it a side
    assert -fine.min() == pytest.approx(0.0895, abs=0.006)
    assert short.mean() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("voxel_size", [0.5, 1.0])
def test_a_finer_scanner_truncates_nothing(voxel_size: float) -> None:
    image = wave(7, 96)
    short, ratio = truncate(image, axis=2, affine=np.eye(4), voxel_size=voxel_size)
    assert short is image
    assert ratio == 1


def test_a_coarser_scanner_sees_the_same_place() -> None:
    anatomy = phantom()
    scan = simulate(anatomy, replace(SIQT, in_plane=1.6, snr_wm=5000.0, snr_gm=4000.0))
    fine = simulate(anatomy, replace(SIQT, snr_wm=5000.0, snr_gm=4000.0))
    assert scan.data.shape == (19, 20, fine.data.shape[2])  # 30 and 32 voxels of 1 mm in voxels of 1.6 mm
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), [30 / 19, 32 / 20, 4])
    np.testing.assert_allclose(centre_of_mass(scan.data, scan.affine), centre_of_mass(fine.data, fine.affine), atol=0.1)


def test_only_the_plane_is_truncated() -> None:
    scan = simulate(phantom(), replace(SIQT, spacing=2.0, thickness=2.0, in_plane=3.0))
    assert scan.data.shape == (10, 11, 17)
    np.testing.assert_allclose(scan.affine[:3, 2], (0, 0, 2))


def centre_of_mass(data: Array, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights = data.astype(np.float64) / data.sum(dtype=np.float64)
    return affine[:3, :3] @ (np.indices(data.shape) * weights).sum(axis=(1, 2, 3)) + affine[:3, 3]


# ---- bias field


@pytest.mark.parametrize("peak", [0.05, 0.3])
def test_the_bias_field_deviates_by_its_peak(peak: float) -> None:
    for seed in range(5):
        field = bias_field((20, 24, 9), peak=peak, rng=rng(seed))
        assert field.shape == (20, 24, 9)
        assert field.dtype == np.float32
        assert np.abs(field - 1).max() == pytest.approx(peak, rel=1e-4)
        assert field.mean() == pytest.approx(1, abs=1e-3)


def test_the_bias_field_is_a_second_order_polynomial() -> None:
    field = bias_field((30, 30, 30), peak=0.3, rng=rng(1)).astype(np.float64)
    for axis in range(3):
        assert np.abs(np.diff(field, n=1, axis=axis)).max() < 0.05
        assert np.abs(np.diff(field, n=2, axis=axis)).max() > 1e-5
        assert np.abs(np.diff(field, n=3, axis=axis)).max() < 2e-6
    assert not np.allclose(field, bias_field((30, 30, 30), peak=0.3, rng=rng(2)))


def test_the_bias_field_multiplies_the_scan() -> None:
    sharp = replace(SIQT, snr_wm=6e6, snr_gm=5e6)
    flat, biased = simulate(phantom(), sharp).data, simulate(phantom(), replace(sharp, bias=0.3)).data
    inside = block("wm", margin=MARGIN)[:, :, ::4]
    expected = bias_field(flat.shape, peak=0.3, rng=rng(sharp.seed))
    np.testing.assert_allclose((biased / flat)[inside], expected[inside], rtol=1e-4)


# ---- orientation on disk


def simulated(folder: Path, preset: str, **stored: Any) -> tuple[Path, list[PairParameters]]:
    save_subject(folder / "in" / "anna", phantom(texture=0.2), **stored)
    settings = SimulationSettings(preset=preset, draws=5, thick_axis="random", validation=0.0)
    pairs = simulate_folder(folder / "in", folder / "out", settings)
    assert {pair.thick_axis for pair in pairs} == set("RAS")
    return folder / "out", pairs


@pytest.fixture(scope="module", params=["siqt-k4", "ultra-low-field"])
def as_ras(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, simulated(tmp_path_factory.mktemp("ras"), request.param)[0]


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PIR"])
def test_the_order_of_voxels_on_disk_changes_nothing(codes: str, as_ras: tuple[str, Path], tmp_path: Path) -> None:
    preset, expected = as_ras
    stored = nib.load(save_subject(tmp_path / "look", phantom(), codes=codes) / "T1w.nii.gz")
    assert "".join(nib.aff2axcodes(stored.affine)) == codes
    out, pairs = simulated(tmp_path, preset, codes=codes)
    paths = [low_path(out, pair) for pair in pairs]
    paths += [subject_path(out, "anna", kind) for kind in ("brain", "head", "mask")]
    for path in paths:
        data, affine = read_volume(path)
        expected_data, expected_affine = read_volume(expected / path.relative_to(out))
        assert np.array_equal(data, expected_data), path.name
        np.testing.assert_allclose(affine, expected_affine, atol=1e-4)
    assert (out / "pairs.csv").read_bytes() == (expected / "pairs.csv").read_bytes()


def test_a_tilted_head_gives_the_same_voxels_tilted(as_ras: tuple[str, Path], tmp_path: Path) -> None:
    preset, expected = as_ras
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.1), [3.0, -8.0, 5.0])
    out, pairs = simulated(tmp_path, preset, affine=tilt @ phantom().affine)
    for path in (low_path(out, pair) for pair in pairs):
        data, affine = read_volume(path)
        expected_data, expected_affine = read_volume(expected / path.relative_to(out))
        np.testing.assert_allclose(data, expected_data, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(affine, tilt @ expected_affine, atol=1e-4)


def test_the_turned_phantom_is_really_turned() -> None:
    """What the tests above compare differs on disk: the phantom is like none of its mirror images."""
    anatomy = phantom(texture=0.2)
    for axis in range(3):
        assert not np.array_equal(np.flip(anatomy.image_brain, axis), anatomy.image_brain)
    assert len(set(SHAPE)) == 3
