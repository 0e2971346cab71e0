"""The check for invented structure: its operator, its noise, a phantom with a blob too much, and the whole line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from lfmri.cli import run
from lfmri_runtime import consistency, contrast
from lfmri_runtime.backends import Step
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.consistency import THRESHOLD, Consistency, check
from lfmri_runtime.contrast import KNOTS
from lfmri_runtime.enhancer import Enhanced, Enhancer
from lfmri_runtime.errors import UsageError
from lfmri_runtime.forward import scan_matrices, simulate
from lfmri_runtime.geometry import WorkingGrid
from lfmri_runtime.noise import noise_sigma
from lfmri_runtime.sidecar import read_sidecar
from lfmri_trainer.simulation.scanner import add_noise, bias_field, thick_slices

from .bundles import MakeBundle

Float32Array = NDArray[np.float32]
Affine = NDArray[np.float64]

SHAPE = (64, 72, 61)
SIGMA = 0.02
BLOB = (30, 40, 28)


def brain(*, blob: float = 0.0) -> Float32Array:
    """An ellipsoid with folded grey and white matter on the standard scale; a blob of 8 mm that is added to it."""
    index = np.indices(SHAPE).astype(np.float32)
    radius = np.sqrt(sum(((i - (n - 1) / 2) / (0.42 * n)) ** 2 for i, n in zip(index, SHAPE, strict=True)))
    folds = np.sin(index[0] / 3) + np.sin(index[1] / 4 + 1) + np.sin(index[2] / 3.5)
    image = np.where(folds + 3 * (0.6 - radius) > 0, 0.92, 0.65)
    image = ndimage.gaussian_filter(np.where(radius < 1, image, 0.0), 0.7)
    away = np.sqrt(sum((i - c) ** 2 for i, c in zip(index, BLOB, strict=True)))
    return (image + blob * np.clip(4.5 - away, 0, 1)).astype(np.float32)


def scan_of(
    image: Float32Array, *, noise: str = "gaussian", unit: float = 1.0, vessel: float = 0.0
) -> tuple[Float32Array, Affine]:
    """Slices of 3 mm every 4 mm, another contrast, a receive field, noise, and a vessel: by the trainer's simulator."""
    rng = np.random.default_rng(5)
    contrasted = np.interp(image, [0, 0.65, 0.92, 1.3], [0, 0.7, 0.85, 1.05]).astype(np.float32)
    contrasted += vessel * (brain(blob=1) - brain())
    thick = thick_slices(contrasted, axis=2, spacing=4, thickness=3)
    thick *= bias_field(thick.shape, peak=0.15, rng=rng)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = (-30, -35, -28)
    return add_noise(thick, sigma=SIGMA, kind=noise, rng=rng) * np.float32(unit), affine


def checked(image: Float32Array, scan: tuple[Float32Array, Affine], **settings: Any) -> Consistency | None:
    data, affine = scan
    place = WorkingGrid.of_scan(data.shape, affine, voxel_size=1.0)
    values: dict[str, Any] = {"scale": 1.0, "limit": 2.5, "thick": 2, "thickness": 3.0}
    return check(place, image, data, **{**values, **settings})


@pytest.fixture(scope="module")
def scan() -> tuple[Float32Array, Affine]:
    return scan_of(brain())


# The operator and the noise


def test_the_operator_is_scipys_blur_and_the_simulators_slices() -> None:
    volume = np.random.default_rng(0).random((12, 14, 61), np.float32)
    place = WorkingGrid.of_scan((12, 14, 16), np.diag([1.0, 1.0, 4.0, 1.0]), voxel_size=1.0)
    found = simulate(volume, scan_matrices(place, thick=2, thickness=3.0))
    sigma = 3 / (2 * np.sqrt(2 * np.log(2)))
    blurred = ndimage.gaussian_filter1d(volume, sigma, axis=2, mode="mirror", truncate=4)
    np.testing.assert_allclose(found, blurred[..., ::4], atol=2e-4)
    simulated = thick_slices(volume, axis=2, spacing=4, thickness=3)
    np.testing.assert_allclose(found[..., 2:-2], simulated[..., 2:-2], atol=2e-4)


def test_without_a_thickness_the_spacing_is_the_profile() -> None:
    place = WorkingGrid.of_scan((12, 14, 16), np.diag([1.0, 1.0, 4.0, 1.0]), voxel_size=1.0)
    volume = np.random.default_rng(0).random((12, 14, 61), np.float32)
    assumed, said = (simulate(volume, scan_matrices(place, thick=2, thickness=t)) for t in (None, 4.0))
    np.testing.assert_array_equal(assumed, said)


@pytest.mark.parametrize(("noise", "filled"), [("gaussian", False), ("rician", False), ("gaussian", True)])
def test_the_noise_is_found(noise: str, filled: bool) -> None:
    image = np.zeros((90, 96, 12), np.float32)
    image[20:70, 20:70] = np.random.default_rng(1).choice([0.7, 0.9], (10, 10, 12)).repeat(5, 0).repeat(5, 1)
    head = ndimage.binary_dilation(image > 0)
    data = add_noise(image, sigma=SIGMA, kind=noise, rng=np.random.default_rng(2))
    if filled:
        data[~head] = 0
    found = noise_sigma(data, head=head, air=~head, planes=(0, 1))
    # Half of the head's voxels touch an edge between blocks, so where there is no air the estimate is an upper bound.
    assert found is not None
    assert SIGMA * 0.97 < found < SIGMA * (4 if filled else 1.03)


def test_a_constant_scan_has_no_noise() -> None:
    head = np.ones((40, 40, 4), bool)
    assert noise_sigma(np.ones(head.shape, np.float32), head=head, air=~head, planes=(0, 1)) is None


# What is found


@pytest.mark.parametrize("noise", ["gaussian", "rician"])
def test_the_truth_is_consistent_and_its_residual_is_the_noise(noise: str) -> None:
    found = checked(brain(), scan_of(brain(), noise=noise))
    assert found is not None
    assert found.noise == pytest.approx(SIGMA, rel=0.05)
    assert found.largest < 0.7 * THRESHOLD
    assert found.rms == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("blob", [0.37, -0.37])
@pytest.mark.parametrize("invented", [True, False])
def test_a_blob_that_only_one_of_them_holds_is_found_at_its_place(blob: float, invented: bool) -> None:
    plain, altered = brain(), brain(blob=blob)
    found = checked(altered, scan_of(plain)) if invented else checked(plain, scan_of(altered))
    assert found is not None
    assert found.largest > THRESHOLD
    expected = np.array([-30, -35, -28]) + BLOB
    assert np.linalg.norm(np.array(found.place) - expected) < 5
    (note,) = consistency.describe(found)[1]
    assert "does not explain the input near" in note


def test_a_vessel_brighter_than_an_enhanced_scan_can_be_is_explained_by_its_brightest() -> None:
    scan = scan_of(brain(), vessel=1.2)
    shown = checked(np.minimum(brain(blob=1), np.float32(1.25)), scan)
    assert shown is not None
    assert shown.largest < THRESHOLD
    lost = checked(brain(), scan)
    assert lost is not None
    assert lost.largest > THRESHOLD
    assert np.linalg.norm(np.array(lost.place) - np.array([-30, -35, -28]) - BLOB) < 5


def test_the_unit_does_not_matter(scan: tuple[Float32Array, Affine]) -> None:
    one = checked(brain(), scan)
    other = checked(brain(), (scan[0] * np.float32(1000), scan[1]), scale=1000.0)
    assert one is not None
    assert other is not None
    assert other.largest == pytest.approx(one.largest, rel=1e-3)
    assert other.noise == pytest.approx(1000 * one.noise, rel=1e-5)
    np.testing.assert_allclose(other.residual, one.residual, atol=1e-2)


def test_only_the_mask_is_looked_at(scan: tuple[Float32Array, Affine]) -> None:
    mask = np.zeros(scan[0].shape, bool)
    mask[40:] = True
    found = checked(brain(blob=0.37), scan, mask=mask)
    assert found is not None
    assert found.largest < THRESHOLD
    assert not found.residual[:40].any()
    assert checked(brain(), scan, mask=np.zeros(mask.shape, bool)) is None


def test_the_network_is_worth_many_such_checks(
    scan: tuple[Float32Array, Affine], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for module in (consistency, contrast):
        monkeypatch.setattr(module, "simulate", lambda v, m: calls.append(v.shape) or simulate(v, m))
    checked(brain(), scan)
    assert len(calls) == len(KNOTS) - 1 + 3, "a piece of the contrast each, twice the whole, once before"


# The whole line


@dataclass
class Painter(Step):
    """Stands in for a network that returns what it is given."""

    name = provider = precision = "painter"
    seconds = 0.0

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        return y

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        raise AssertionError(shape)


@pytest.mark.parametrize("turn", [(slice(None),) * 3, (slice(None, None, -1), slice(None), slice(None, None, -1))])
def test_the_residual_lies_on_the_scans_voxels(
    make_bundle: MakeBundle, scan: tuple[Float32Array, Affine], turn: tuple[slice, slice, slice]
) -> None:
    def enhance(data: Float32Array, affine: Affine) -> Enhanced:
        return Enhancer(open_bundle(make_bundle()), step=Painter()).enhance(data, affine, slice_thickness=3)

    data, affine = scan
    turned = np.ascontiguousarray(data[turn].transpose(2, 0, 1))
    flips = np.array([1 if part.step is None else -1 for part in turn])
    other = affine @ np.diag([*flips, 1.0])
    other[:3, 3] = (affine @ [*np.where(flips < 0, np.array(data.shape) - 1, 0), 1])[:3]
    one, two = enhance(data, affine), enhance(turned, other[:, [2, 0, 1, 3]])
    assert one.residual is not None
    assert two.residual is not None
    assert one.residual.shape == data.shape
    np.testing.assert_allclose(two.residual, one.residual[turn].transpose(2, 0, 1), atol=1e-2)
    said, again = one.report["consistency"], two.report["consistency"]
    assert again.pop("place_mm") == said.pop("place_mm")
    assert again == pytest.approx(said, rel=1e-2)


def test_the_command_writes_the_map_and_the_number(
    make_bundle: MakeBundle, scan: tuple[Float32Array, Affine], tmp_path: Path
) -> None:
    nib.save(nib.Nifti1Image(*scan), tmp_path / "scan.nii.gz")
    paths = [str(tmp_path / name) for name in ("scan.nii.gz", "out.nii.gz", "residual.nii.gz")]
    options = ["--bundle", str(make_bundle()), "--slice-thickness", "3", "--residual", paths[2]]
    assert run(["enhance", paths[0], "-o", paths[1], *options]) == 0
    written = nib.load(paths[2])
    np.testing.assert_allclose(written.affine, scan[1])
    document = read_sidecar(tmp_path / "out.nii.gz")
    assert document is not None
    said = document["consistency"]
    data = written.get_fdata()
    assert said["rms"] == pytest.approx(np.sqrt(np.mean(data[data != 0] ** 2)), rel=1e-2)
    assert said["noise"] == pytest.approx(SIGMA, rel=0.05)


@pytest.mark.parametrize("thickness", [0.0, -1.0, 51.0, float("nan")])
def test_a_thickness_out_of_range_is_refused(
    make_bundle: MakeBundle, scan: tuple[Float32Array, Affine], thickness: float
) -> None:
    with pytest.raises(UsageError, match="--slice-thickness is"):
        Enhancer(open_bundle(make_bundle())).enhance(*scan, slice_thickness=thickness)
