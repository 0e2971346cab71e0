from pathlib import Path
from typing import Any

import nibabel as nib
import nilearn
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.spatial.transform import Rotation

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.geometry import WorkingGrid, hidden_thick_axis, thick_axis_of, voxel_sizes
from lfmri_runtime.resample import apply_along, regrid_matrix

Array = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]

ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR", "SLA", "oblique")
# In RAS order; in a scan's own order the axes are permuted with it.
RAS_SHAPE, RAS_SPACING = (42, 38, 15), (1.5, 1.2, 5.0)
VOXEL_SIZE = 1.0


def scan_grid(orientation: str, oblique: Affine) -> tuple[tuple[int, int, int], Affine]:
    """A scan's shape and affine: the same box in the head whatever the order of its voxels."""
    affine = oblique.copy() if orientation == "oblique" else np.diag([*RAS_SPACING, 1.0])
    affine[:3, 3] = (-31.5, 12.25, -40.75)
    if orientation == "oblique":
        return RAS_SHAPE, affine
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    shape = [0, 0, 0]
    for axis, (target, _) in enumerate(turn.astype(int)):
        shape[target] = RAS_SHAPE[axis]
    result = affine @ inv_ornt_aff(turn, RAS_SHAPE)
    assert "".join(aff2axcodes(result)) == orientation
    return (shape[0], shape[1], shape[2]), result


def centres(shape: tuple[int, ...], affine: Affine) -> Affine:
    """Where each voxel's centre lies, (..., 3), mm."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def smooth(points: Affine) -> Array:
    """A function of the place in the head that a cubic spline of 5 mm samples follows to a ten-thousandth."""
    x, y, z = np.moveaxis(points, -1, 0)
    value = 1 + 0.3 * np.sin(2 * np.pi * x / 60) * np.cos(2 * np.pi * y / 75) + 0.3 * np.sin(2 * np.pi * z / 90 + 0.5)
    return np.asarray(value, np.float32)


@pytest.fixture(params=ORIENTATIONS)
def scan(request: pytest.FixtureRequest, oblique: Affine) -> tuple[tuple[int, int, int], Affine]:
    return scan_grid(request.param, oblique)


@pytest.fixture(scope="module")
def mni() -> Array:
    source = Path(nilearn.__file__).parent / "datasets" / "data"
    image: Any = nib.load(source / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    return np.asarray(image.get_fdata(dtype=np.float32))


# ---- the working grid


def test_the_working_grid_starts_at_the_corner_voxel(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    corners = centres((2, 2, 2), affine @ np.diag([*(np.array(shape) - 1.0), 1.0])).reshape(-1, 3)
    first = grid.affine[:3, 3]
    assert np.abs(corners - first).max(axis=1).min() < 1e-9  # it is one of the scan's corner voxels
    ends = grid.scan_affine @ [*(np.array(grid.scan_shape) - 1), 1]
    last = grid.affine @ [*(np.array(grid.shape) - 1), 1]
    # Along each axis it ends before the scan's last centre, by less than a working voxel.
    directions = grid.affine[:3, :3] / np.array(grid.spacing)
    left = np.linalg.solve(directions, ends[:3] - last[:3])
    assert (left > -1e-6).all()
    assert (left < VOXEL_SIZE).all()


def test_the_working_grid_is_in_ras_order_with_the_scans_axes(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    assert aff2axcodes(grid.affine) == aff2axcodes(grid.scan_affine) == ("R", "A", "S")
    assert grid.spacing == pytest.approx((VOXEL_SIZE,) * 3)
    assert sorted(grid.scan_shape) == sorted(shape)
    np.testing.assert_allclose(grid.affine[:3, :3] / grid.spacing, grid.scan_affine[:3, :3] / grid.scan_spacing)
    assert grid.scan_shape == RAS_SHAPE
    assert grid.scan_spacing == pytest.approx((1.5, 1.2, 5.0))
    assert grid.shape == (62, 45, 71)  # (n - 1) * spacing + 1 voxels of 1 mm


def test_reordering_moves_no_voxel_in_the_head(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    for axis in range(3):
        places = centres(shape, affine)[..., axis]
        np.testing.assert_allclose(
            grid.to_ras(places), centres(grid.scan_shape, grid.scan_affine)[..., axis], atol=1e-9
        )


def test_regridding_keeps_the_value_at_each_place(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    working = grid.regrid(np.asarray(grid.to_ras(smooth(centres(shape, affine))), np.float32))
    assert working.shape == grid.shape
    assert working.dtype == np.float32
    inner = (slice(8, -8), slice(8, -8), slice(20, -20))  # mirrored ends bend the spline in the outermost samples
    np.testing.assert_allclose(working[inner], smooth(centres(grid.shape, grid.affine))[inner], atol=1e-3)


def test_a_working_volume_goes_back_into_the_scans_order(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    data, back = grid.to_scan_order(smooth(centres(grid.shape, grid.affine)))
    assert aff2axcodes(back) == aff2axcodes(affine)
    np.testing.assert_allclose(data, smooth(centres(data.shape, back)), atol=1e-5)
    assert voxel_sizes(back) == pytest.approx((VOXEL_SIZE,) * 3)
    assert data.flags.c_contiguous


def test_a_working_volume_goes_back_onto_the_scans_grid(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    data = grid.to_scan_grid(smooth(centres(grid.shape, grid.affine)))
    assert data.shape == shape
    assert data.dtype == np.float32
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(data[inner], smooth(centres(shape, affine))[inner], atol=1e-3)


def test_a_scan_that_is_regridded_and_back_keeps_its_values(scan: tuple[tuple[int, int, int], Affine]) -> None:
    shape, affine = scan
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=VOXEL_SIZE)
    values = smooth(centres(shape, affine))
    back = grid.to_scan_grid(grid.regrid(np.asarray(grid.to_ras(values), np.float32)))
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[inner], values[inner], atol=1e-3)
    # At the far ends the working grid stops up to a voxel short, and its nearest value is taken.
    np.testing.assert_allclose(back, values, atol=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_affines_in_float32_do_not_cost_a_plane(seed: int) -> None:
    angles = np.random.default_rng(seed).uniform(-0.3, 0.3, 3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() * (1.6, 1.6, 5.0)
    shape = (31, 21, 36)
    read = affine.astype(np.float32).astype(float)  # as it comes from a file
    place = WorkingGrid.of_scan(shape, read, voxel_size=1.0)
    assert place.shape == (49, 33, 176)
    written = place.affine.astype(np.float32).astype(float)
    again = WorkingGrid.of_scan(shape, read, voxel_size=min(voxel_sizes(written)))
    assert again.shape == place.shape


def test_a_finer_scan_goes_to_a_coarser_grid_and_back() -> None:
    shape, affine = (60, 60, 60), np.diag([0.7, 0.7, 0.7, 1.0])
    grid = WorkingGrid.of_scan(shape, affine, voxel_size=1.0)
    assert grid.shape == (42, 42, 42)
    values = smooth(centres(shape, affine))
    working = grid.regrid(values)
    inner = (slice(6, -6),) * 3
    # The blur that keeps it from aliasing takes up to (2 pi s)^2 / 2 of a wave: 0.1 % of 60 mm.
    np.testing.assert_allclose(working[inner], smooth(centres(grid.shape, grid.affine))[inner], atol=2e-3)
    np.testing.assert_allclose(grid.to_scan_grid(working)[inner], values[inner], atol=2e-3)


def test_a_scan_on_the_working_voxel_size_is_not_touched() -> None:
    affine = np.diag([-1.0005, 1.0, 0.9995, 1.0])
    grid = WorkingGrid.of_scan((20, 21, 22), affine, voxel_size=1.0)
    assert grid.shape == (20, 21, 22)
    assert grid.spacing == pytest.approx((1.0005, 1.0, 0.9995), abs=1e-12)
    volume = np.random.default_rng(0).normal(size=(20, 21, 22)).astype(np.float32)
    assert np.array_equal(grid.regrid(np.asarray(grid.to_ras(volume), np.float32)), volume[::-1])
    assert np.array_equal(grid.to_scan_grid(volume[::-1]), volume)


@pytest.mark.parametrize("shape", [(20, 20, 1), (20, 20, 2)])
def test_a_scan_of_one_or_two_slices_goes_through(shape: tuple[int, int, int]) -> None:
    grid = WorkingGrid.of_scan(shape, np.diag([1.0, 1.0, 5.0, 1.0]), voxel_size=1.0)
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    working = grid.regrid(volume)
    assert working.shape == (20, 20, 1 if shape[2] == 1 else 6)
    np.testing.assert_allclose(grid.to_scan_grid(working), volume, atol=1e-5)


def test_a_working_grid_that_is_too_large_is_refused_before_it_is_made() -> None:
    with pytest.raises(InputRefused, match=r"100000 x 2 x 100000 voxels of 1\.0 mm; expected at most 134217728"):
        WorkingGrid.of_scan((100_000, 2, 100_000), np.eye(4), voxel_size=1.0)
    with pytest.raises(InputRefused, match="crop it to the head"):
        WorkingGrid.of_scan((100, 100, 100), np.diag([1.0, 1.0, 50_000.0, 1.0]), voxel_size=0.5)
    with pytest.raises(InputRefused, match=r"scan of 4000 x 4 x 4 voxels .* and 2048 along an axis"):
        WorkingGrid.of_scan((4000, 4, 4), np.diag([0.05, 1.0, 1.0, 1.0]), voxel_size=1.0)
    assert WorkingGrid.of_scan((512, 512, 512), np.eye(4), voxel_size=1.0).shape == (512, 512, 512)


# ---- the thick axis


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        ((1.0, 1.0, 5.0), 2),
        ((5.0, 1.0, 1.0), 0),
        ((1.6, 5.0, 1.6), 1),
        ((1.0, 1.0, 1.5), 2),
        ((1.0, 1.0, 1.49), None),
        ((1.0, 1.0, 1.0), None),
        ((1.0, 5.0, 5.0), None),
        ((0.5, 1.0, 2.0), 2),
    ],
)
def test_an_axis_is_thick_when_it_stands_out(spacing: tuple[float, float, float], axis: int | None) -> None:
    assert thick_axis_of(spacing) == axis


def test_voxel_sizes_are_lengths_of_columns(oblique: Affine) -> None:
    assert voxel_sizes(oblique) == pytest.approx((1.5, 1.2, 5.0))
    assert voxel_sizes(np.diag([-2.0, 3.0, 4.0, 1.0])) == (2, 3, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_regridded_from_thick_slices_is_found(axis: int, mni: Array) -> None:
    length = mni.shape[axis]
    count = (length - 1) // 5 + 1
    thick = apply_along(mni, regrid_matrix(length, 1.0, count, 5.0), axis)
    thin = apply_along(thick, regrid_matrix(count, 5.0, (count - 1) * 5 + 1, 1.0), axis)
    assert hidden_thick_axis(thin) == axis
    noisy = thin + np.random.default_rng(0).normal(0, 1, thin.shape).astype(np.float32)  # of 255
    assert hidden_thick_axis(noisy) in (axis, None)


def test_no_axis_is_found_where_none_was_regridded(mni: Array) -> None:
    assert hidden_thick_axis(mni) is None
    assert hidden_thick_axis(np.random.default_rng(0).normal(size=(64, 70, 60)).astype(np.float32)) is None
    assert hidden_thick_axis(np.zeros((16, 16, 16), np.float32)) is None
    assert hidden_thick_axis(np.full((16, 16, 16), 7, np.float32)) is None
