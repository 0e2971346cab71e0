"""The core, with step graphs whose result is known: y itself, or y and a share of the noise."""

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from numpy.typing import NDArray
from scipy import ndimage

from lfmri_runtime.backends import Step
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.calibration import Calibration
from lfmri_runtime.enhancer import Enhanced, Enhancer, interpolate
from lfmri_runtime.errors import BundleRefused, InputRefused, UsageError
from lfmri_runtime.slices import noise_volume, padded_shape, plane_normals

from .bundles import SHARE, MakeBundle
from .heads import SHAPE, head, places, scan_of

Float32Array = NDArray[np.float32]
Affine = NDArray[np.float64]
Scan = tuple[Float32Array, Affine]

#: What batches, threads and the order of planes may change: the order of float32 sums.
ROUNDING = 1e-5
ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR", "oblique")


def turned(codes: str, oblique: Affine) -> Affine:
    if codes == "oblique":
        return oblique
    affine = np.diag([1.5, 1.2, 5.0, 1.0])
    affine[:3, :3] = inv_ornt_aff(axcodes2ornt(tuple(codes)), (2, 2, 2))[:3, :3].T @ affine[:3, :3]
    assert "".join(nib.aff2axcodes(affine)) == codes
    return affine


@pytest.fixture
def scan() -> Scan:
    return scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))


@pytest.fixture(scope="module")
def plain(make_bundle: MakeBundle) -> Enhancer:
    return Enhancer(open_bundle(make_bundle()), threads=1)


@pytest.fixture(scope="module")
def noisy_bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle("noisy")


@pytest.fixture(scope="module")
def noisy(noisy_bundle: Path) -> Enhancer:
    return Enhancer(open_bundle(noisy_bundle), threads=1)


class Spy(Step):
    """Stands in for a step: keeps the conditions that it is given and returns them."""

    name = provider = precision = "spy"
    seconds = 0.0

    def __init__(self, factor: float = 1.0) -> None:
        self.seen: list[Float32Array] = []
        self.factor = np.float32(factor)

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        assert x_t.shape == y.shape
        assert x_t.flags.c_contiguous
        assert y.flags.c_contiguous
        assert x_t.dtype == y.dtype == np.float32
        self.seen.append(y)
        return y * self.factor

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        raise AssertionError(shape)


def spied(bundle: Path, scan: Scan, *, factor: float = 1.0, **settings: Any) -> tuple[Enhanced, list[Float32Array]]:
    enhancer = Enhancer(open_bundle(bundle))
    enhancer.step = spy = Spy(factor)
    return enhancer.enhance(*scan, **settings), spy.seen


# Where each voxel goes


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("steps", [1, 3])
def test_enhancing_by_y_is_cubic_interpolation(plain: Enhancer, oblique: Affine, codes: str, steps: int) -> None:
    data, affine = scan_of(turned(codes, oblique))
    enhanced = plain.enhance(data, affine, steps=steps)
    assert nib.aff2axcodes(enhanced.affine) == nib.aff2axcodes(affine)
    np.testing.assert_allclose(np.linalg.norm(enhanced.affine[:3, :3], axis=0), 1.0, atol=1e-6)
    there = places(enhanced.mean.shape, enhanced.affine)
    voxels = places(enhanced.mean.shape, np.linalg.inv(affine) @ enhanced.affine)
    expected = ndimage.map_coordinates(data, np.moveaxis(voxels, -1, 0), order=3, mode="mirror", output=np.float64)
    np.testing.assert_allclose(enhanced.mean, expected.clip(0), atol=1e-4 * data.max())
    # And the head is where it was: thick slices blur it a little, no more.
    assert np.abs(enhanced.mean - head(there)).max() < 0.06 * data.max()
    assert np.abs(enhanced.mean - head(there)).mean() < 0.005 * data.max()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_whole_scan_is_covered(plain: Enhancer, oblique: Affine, codes: str) -> None:
    data, affine = scan_of(turned(codes, oblique))
    enhanced = plain.enhance(data, affine)
    last = np.diag([*(np.array(enhanced.mean.shape) - 1.0), 1])
    corners = places((2, 2, 2), np.linalg.inv(affine) @ enhanced.affine @ last)
    for axis, size in enumerate((1.5, 1.2, 5.0)):  # less than one voxel of 1 mm is left over at one end
        first, final = corners[..., axis].min(), corners[..., axis].max()
        assert -1e-6 <= first < 1 / size
        assert SHAPE[axis] - 1 - 1 / size < final <= SHAPE[axis] - 1 + 1e-6


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_inputs_grid_comes_back_exactly(plain: Enhancer, oblique: Affine, codes: str) -> None:
    data, affine = scan_of(turned(codes, oblique))
    enhanced = plain.enhance(data, affine, grid="input")
    assert enhanced.mean.shape == data.shape
    assert enhanced.mean.dtype == np.float32
    np.testing.assert_array_equal(enhanced.affine, affine)
    np.testing.assert_allclose(enhanced.mean, data, atol=0.03 * data.max())


def test_what_is_brighter_than_the_standard_range_is_clipped(plain: Enhancer, scan: Scan) -> None:
    data, affine = scan
    data[10, 11, 3] = 5 * data.max()
    data[2, 2, 2] = -50
    enhanced = plain.enhance(data, affine)
    limit = np.float32(1.25) * np.float32(enhanced.scale)
    expected = interpolate(data, affine, voxel_size=1.0).clip(0, limit)
    np.testing.assert_allclose(enhanced.mean, expected, atol=1e-5 * limit)
    np.testing.assert_allclose(enhanced.mean.max(), limit, rtol=1e-6)
    assert enhanced.mean.min() == 0


def test_the_inputs_grid_keeps_to_the_standard_range(plain: Enhancer, scan: Scan) -> None:
    data, affine = scan
    data[data < 150] = 0  # an edge, where the spline from the working grid swings below zero
    data[10, 11, 3] = 5 * data.max()
    enhanced = plain.enhance(data, affine, grid="input")
    assert enhanced.mean.min() == 0
    assert enhanced.mean.max() <= np.float32(1.25) * np.float32(enhanced.scale)


# The thick axis


@pytest.mark.parametrize(
    ("codes", "letter"), [("RAS", "S"), ("LPS", "S"), ("PIR", "R"), ("SRA", "A"), ("oblique", "S")]
)
def test_rows_run_along_the_thick_axis_of_the_patient(
    make_bundle: MakeBundle, oblique: Affine, codes: str, letter: str
) -> None:
    data, affine = scan_of(turned(codes, oblique))
    data += np.random.default_rng(2).normal(0, 60, data.shape).astype(np.float32)
    enhanced, seen = spied(make_bundle(), (data, affine))
    assert enhanced.report["thick_axis"] == letter
    assert enhanced.mean.shape == (29, 26, 31)
    assert sum(len(y) for y in seen) == 29 + 26
    # Five rows lie between two of the noisy slices, and four columns in three voxels: rows vary slowly.
    content = np.concatenate(seen)[:, 0, :26, :26]
    assert 2 * np.abs(np.diff(content, axis=1)).sum() < np.abs(np.diff(content, axis=2)).sum()


@pytest.mark.parametrize(("asked", "planes"), [("R", 26 + 31), ("A", 29 + 31), ("S", 29 + 26), ("none", 29 + 26 + 31)])
def test_a_thick_axis_may_be_named(make_bundle: MakeBundle, scan: Scan, asked: str, planes: int) -> None:
    enhanced, seen = spied(make_bundle(), scan, thick_axis=asked)
    assert enhanced.report["thick_axis"] == asked
    assert sum(len(y) for y in seen) == planes
    assert enhanced.notes == ()


def test_an_isotropic_scan_is_cut_in_all_three_planes(make_bundle: MakeBundle) -> None:
    rng = np.random.default_rng(4)
    data, affine = scan_of(np.diag([1.0, 1.0, 1.0, 1.0]), (24, 20, 18))
    data += rng.normal(0, 5, data.shape).astype(np.float32)
    enhanced, seen = spied(make_bundle(), (data, affine))
    assert enhanced.report["thick_axis"] == "none"
    assert enhanced.notes == ()
    assert sum(len(y) for y in seen) == 24 + 20 + 18
    np.testing.assert_allclose(enhanced.mean, data.clip(0, 1.25 * enhanced.scale), atol=1e-3)


def test_a_regridded_scan_is_noted(plain: Enhancer) -> None:
    rng = np.random.default_rng(4)
    data, _ = scan_of(np.diag([1.0, 1.0, 5.0, 1.0]), (40, 36, 8))
    data += rng.normal(0, 10, data.shape).astype(np.float32)
    regridded = np.asarray(ndimage.zoom(data, (1, 1, 5), order=3), dtype=np.float32)
    enhanced = plain.enhance(regridded, np.eye(4))
    assert enhanced.report["thick_axis"] == "none"
    (note,) = enhanced.notes
    assert "--thick-axis S" in note
    assert plain.enhance(regridded, np.eye(4), thick_axis="S").notes == ()


# Intensities


def test_a_mask_sets_the_scale_and_darkens_what_lies_outside(plain: Enhancer, scan: Scan) -> None:
    data, affine = scan
    mask = head(places(data.shape, affine)) > 40  # below Otsu's threshold
    bright = data.copy()
    bright[0] = 4000  # a fold that would spoil the scale
    enhanced = plain.enhance(bright, affine, mask=mask)
    assert enhanced.scale == pytest.approx(data[mask].mean() / 0.6, rel=1e-6)
    expected = interpolate(np.where(mask, data, np.float32(0)), affine, voxel_size=1.0)
    np.testing.assert_allclose(enhanced.mean, expected.clip(0, 1.25 * enhanced.scale), atol=1e-2)
    assert plain.enhance(bright, affine).scale > 2 * enhanced.scale


@pytest.mark.parametrize("mask", [np.zeros(SHAPE, bool), np.ones((7, 22, 20), bool)])
def test_a_mask_that_fits_nothing_is_refused(plain: Enhancer, scan: Scan, mask: NDArray[np.bool_]) -> None:
    with pytest.raises(InputRefused, match="give a mask on the scan's own grid"):
        plain.enhance(*scan, mask=mask)


def test_the_scans_unit_is_kept(noisy: Enhancer, scan: Scan) -> None:
    data, affine = scan
    small, large = (noisy.enhance(data * np.float32(unit), affine, samples=2, steps=2) for unit in (1, 1000))
    assert large.scale == pytest.approx(1000 * small.scale, rel=1e-6)
    np.testing.assert_allclose(large.mean, 1000 * small.mean, atol=ROUNDING * large.mean.max())
    assert small.std is not None
    assert large.std is not None
    np.testing.assert_allclose(large.std, 1000 * small.std, atol=ROUNDING * large.mean.max())


# Noise and samples


def test_one_seed_gives_the_same_bytes_and_another_does_not(noisy: Enhancer, scan: Scan) -> None:
    first, again, other = (noisy.enhance(*scan, seed=seed) for seed in (7, 7, 8))
    assert first.mean.tobytes() == again.mean.tobytes()
    assert np.abs(first.mean - other.mean).max() > 0.05 * first.scale


@pytest.mark.parametrize("steps", [1, 4])
def test_mean_and_deviation_are_those_of_the_samples(noisy: Enhancer, scan: Scan, steps: int) -> None:
    data, affine = scan
    enhanced = noisy.enhance(data, affine, samples=5, seed=3, steps=steps)
    y = interpolate(data, affine, voxel_size=1.0) / np.float32(enhanced.scale)
    noise = [
        noise_volume(padded_shape(y.shape, 8), std=0.5, seed=3, sample=n)[tuple(map(slice, y.shape))] for n in range(5)
    ]
    drawn = []
    for x_t in noise:
        for left in range(steps, 0, -1):
            x_t = x_t + (y.clip(0) + SHARE * x_t - x_t) / left
        drawn.append(x_t)
    np.testing.assert_allclose(enhanced.mean / enhanced.scale, np.mean(drawn, axis=0).clip(0, 1.25), atol=1e-5)
    assert enhanced.std is not None
    np.testing.assert_allclose(enhanced.std / enhanced.scale, np.std(drawn, axis=0, ddof=1), atol=1e-5)
    assert np.std(drawn, axis=0).mean() > 0.01


def test_one_sample_has_no_deviation(noisy: Enhancer, scan: Scan) -> None:
    assert noisy.enhance(*scan).std is None
    enhanced = noisy.enhance(*scan, samples=2, grid="input")
    assert enhanced.std is not None
    assert enhanced.std.shape == scan[0].shape
    assert enhanced.std.min() >= 0


@pytest.mark.parametrize(
    ("steps", "samples", "thick_axis", "scale", "note"),
    [
        (2, 3, "auto", 1.75, ""),
        (2, 4, "auto", 1.75, ""),
        (2, 2, "auto", 1.75, "was fitted with 3 samples, 2 were taken"),
        (2, 3, "none", 1.75, "was fitted on scans with a thick axis"),
        (5, 3, "auto", 1.0, "has no calibration for 5 Euler steps, only for 2: "),
    ],
)
def test_the_deviation_is_scaled_by_the_contract(
    make_bundle: MakeBundle,
    noisy: Enhancer,
    scan: Scan,
    steps: int,
    samples: int,
    thick_axis: str,
    scale: float,
    note: str,
) -> None:
    calibration = Calibration(steps=2, samples=3, scale=1.75, subjects=("v",), scans=1, voxels=9)
    calibrated = Enhancer(open_bundle(make_bundle("noisy", uncertainty=(calibration,))), threads=1)
    settings: dict[str, Any] = {"steps": steps, "samples": samples, "thick_axis": thick_axis, "grid": "input"}
    bare, found = (enhancer.enhance(*scan, **settings) for enhancer in (noisy, calibrated))
    assert bare.std is not None
    np.testing.assert_allclose(found.std, np.float32(scale) * bare.std, rtol=1e-5, atol=1e-6 * bare.std.max())
    np.testing.assert_array_equal(found.mean, bare.mean)
    assert found.report["uncertainty"] == {"scale": scale, "calibrated": not note}
    assert len(found.notes) == bool(note)
    assert note in "".join(found.notes)
    (without,) = bare.notes
    assert f"the bundle has no calibration for {steps} Euler steps: the uncertainty is the bare" in without


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (3, 1), (4, 2), (64, 2)])
def test_batches_and_threads_change_nothing(
    noisy: Enhancer, noisy_bundle: Path, scan: Scan, batch: int, threads: int
) -> None:
    settings: dict[str, Any] = {"samples": 2, "steps": 3, "seed": 1}
    expected = noisy.enhance(*scan, **settings)
    found = Enhancer(open_bundle(noisy_bundle), threads=threads, batch=batch).enhance(*scan, **settings)
    np.testing.assert_allclose(found.mean, expected.mean, atol=ROUNDING * expected.mean.max())
    np.testing.assert_allclose(found.std, expected.std, atol=ROUNDING * expected.mean.max())


def test_the_order_of_planes_changes_nothing(noisy: Enhancer, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = noisy.enhance(*scan, thick_axis="none", steps=2)
    monkeypatch.setattr("lfmri_runtime.draws.plane_normals", lambda thick: plane_normals(thick)[::-1])
    found = noisy.enhance(*scan, thick_axis="none", steps=2)
    np.testing.assert_allclose(found.mean, expected.mean, atol=ROUNDING * expected.mean.max())


# What is counted and reported


def test_progress_reaches_the_total(make_bundle: MakeBundle, scan: Scan) -> None:
    enhancer = Enhancer(open_bundle(make_bundle()), batch=8)
    seen: list[tuple[int, int]] = []
    enhancer.enhance(*scan, samples=3, steps=2, progress=lambda done, total: seen.append((done, total)))
    total = 3 * (4 + 4)  # 29 and 26 slices in eights
    assert seen == [(n, total) for n in range(1, total + 1)]


def test_the_report_says_what_ran(noisy: Enhancer, scan: Scan) -> None:
    report = noisy.enhance(*scan, samples=2, steps=5, seed=9, grid="input").report
    seconds = report.pop("seconds")
    assert report == {
        "steps": 5,
        "samples": 2,
        "seed": 9,
        "grid": "input",
        "thick_axis": "S",
        "backend": {"name": "onnxruntime", "provider": "CPUExecutionProvider", "precision": "float32"},
        "consistency": {"largest": None, "threshold": 11.0, "place_mm": None, "rms": None, "noise": None},
        "uncertainty": {"scale": 1.0, "calibrated": False},
    }
    assert set(seconds) == {"prepare", "network", "loop", "check", "restore"}
    assert min(seconds.values()) >= 0
    assert "uncertainty" not in noisy.enhance(*scan).report, "of one sample"
    assert noisy.enhance(*scan).report["steps"] == 1, "the contract's default"


def test_memory_grows_with_neither_steps_nor_samples(noisy: Enhancer, scan: Scan) -> None:
    peaks = []
    for samples, steps in ((2, 1), (2, 1), (8, 1), (2, 8)):
        tracemalloc.start()
        noisy.enhance(*scan, samples=samples, steps=steps)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    volume = 4 * 29 * 26 * 31
    for peak in peaks[2:]:
        assert abs(peak - peaks[1]) < volume / 2


# Refusals


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, "--steps is 0; expected 1 to 1000"),
        ({"steps": 1001}, "--steps is 1001"),
        ({"samples": 0}, "--samples is 0"),
        ({"seed": -1}, "--seed is -1; expected 0 to 4294967295"),
        ({"seed": 2**32}, "--seed is 4294967296; expected 0 to 4294967295"),
        ({"grid": "coarse"}, "--grid is 'coarse'; expected one of isotropic, input"),
        ({"thick_axis": "s"}, "--thick-axis is 's'; expected one of auto, R, A, S, none"),
    ],
)
def test_settings_out_of_range_are_refused(plain: Enhancer, scan: Scan, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        plain.enhance(*scan, **settings)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_scan_of_background_alone_is_refused(plain: Enhancer, value: float) -> None:
    with pytest.raises(InputRefused, match="expected a magnitude image"):
        plain.enhance(np.full(SHAPE, value, np.float32), np.diag([1.5, 1.2, 5.0, 1.0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("masked", [True, False])
def test_values_that_are_not_finite_are_refused(plain: Enhancer, scan: Scan, value: float, masked: bool) -> None:
    data = scan[0].copy()
    data[1, 2, 3] = value
    with pytest.raises(InputRefused, match="values that are not finite"):
        plain.enhance(data, scan[1], mask=np.ones(data.shape, bool) if masked else None)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4, 2), ()])
def test_only_a_volume_is_a_scan(plain: Enhancer, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputRefused, match="expected three axes"):
        plain.enhance(np.ones(shape, np.float32), np.eye(4))


@pytest.mark.parametrize(
    "affine", [np.full((4, 4), np.nan), np.diag([0.0, 1, 1, 1]), np.eye(3), np.diag([np.inf, 1, 1, 1]), np.ones((4, 4))]
)
def test_an_affine_that_is_none_is_refused(plain: Enhancer, scan: Scan, affine: Affine) -> None:
    with pytest.raises(InputRefused, match=r"the affine is .* expected 4 x 4, finite, voxels to mm") as refusal:
        plain.enhance(scan[0], affine)
    assert "\n" not in str(refusal.value)


def test_a_complex_image_is_refused(plain: Enhancer, scan: Scan) -> None:
    with pytest.raises(InputRefused, match="the scan is complex; expected a magnitude image"):
        plain.enhance(scan[0].astype(np.complex64), scan[1])


def test_a_mask_of_bytes_is_a_mask(plain: Enhancer, scan: Scan) -> None:
    mask = scan[0] > np.median(scan[0])
    expected = plain.enhance(*scan, mask=mask)
    found = plain.enhance(*scan, mask=mask.astype(np.uint8) * 255)  # type: ignore[arg-type] # as masks are stored
    np.testing.assert_array_equal(found.mean, expected.mean)


def test_a_scan_that_spans_a_room_is_refused(plain: Enhancer, scan: Scan) -> None:
    with pytest.raises(InputRefused, match="check its voxel sizes"):
        plain.enhance(scan[0], np.diag([50.0, 50.0, 50.0, 1.0]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_numbers_is_refused(make_bundle: MakeBundle, scan: Scan, value: float) -> None:
    with pytest.raises(BundleRefused, match="not finite"), np.errstate(invalid="ignore"):
        spied(make_bundle(), scan, factor=value)
