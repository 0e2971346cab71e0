from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from lfmri_runtime.sampler import euler, uniform_time_grid
from lfmri_runtime.slices import batches, noise_volume, pad, padded_shape, plane_normals, slices_of

Array = npt.NDArray[np.float64]
Velocity = Callable[[Array, Array, float], Array]

SHAPE = (5, 6, 7)


def marked(thick_axis: int) -> npt.NDArray[np.float32]:
    """A volume whose every voxel says where it is along the thick axis."""
    return np.broadcast_to(np.indices(SHAPE)[thick_axis], SHAPE).astype(np.float32)


def step_of(velocity: Velocity) -> Callable[[Array, Array, float, float], Array]:
    return lambda x_t, y, t, dt: x_t + dt * velocity(x_t, y, t)


def test_the_planes_contain_the_thick_axis() -> None:
    assert [plane_normals(axis) for axis in range(3)] == [(1, 2), (0, 2), (0, 1)]
    assert plane_normals(None) == (0, 1, 2)


def test_padding_appends_zeros_up_to_the_multiple() -> None:
    volume = np.random.default_rng(0).uniform(1, 2, (9, 16, 1)).astype(np.float32)
    padded = pad(volume, 8)
    assert padded.shape == padded_shape(volume.shape, 8) == (16, 16, 8)
    assert np.array_equal(padded[:9, :16, :1], volume)
    assert padded.sum(dtype=np.float64) == volume.sum(dtype=np.float64)
    assert padded.dtype == np.float32


@pytest.mark.parametrize(("thick_axis", "normal"), [(a, n) for a in range(3) for n in range(3) if a != n])
def test_rows_run_along_the_thick_axis(thick_axis: int, normal: int) -> None:
    stack = slices_of(marked(thick_axis), normal=normal, thick_axis=thick_axis)
    other = 3 - thick_axis - normal
    assert stack.shape == (SHAPE[normal], SHAPE[thick_axis], SHAPE[other])
    assert (stack == np.arange(SHAPE[thick_axis])[None, :, None]).all()


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_without_a_thick_axis_slices_keep_the_volumes_order(normal: int) -> None:
    volume = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    stack = slices_of(volume, normal=normal, thick_axis=None)
    for i, one in enumerate(stack):
        assert np.array_equal(one, volume.take(i, axis=normal))


def test_slices_are_a_view_so_that_results_go_back_into_the_volume() -> None:
    volume = np.zeros(SHAPE, np.float32)
    slices_of(volume, normal=1, thick_axis=2)[3, 6, 4] = 1
    assert volume[4, 3, 6] == volume.sum() == 1


@pytest.mark.parametrize(("count", "size"), [(10, 3), (9, 3), (2, 5), (1, 1), (0, 4)])
def test_batches_cover_every_slice_once(count: int, size: int) -> None:
    assert all(part.stop <= count for part in batches(count, size))
    parts = [list(range(count))[part] for part in batches(count, size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert all(0 < len(part) <= size for part in parts)
    assert len(parts) == -(-count // size)


def test_noise_is_standard_normal() -> None:
    noise = noise_volume((64, 64, 64), std=1.0, seed=3, sample=1)
    assert (noise.shape, noise.dtype) == ((64, 64, 64), np.float32)
    # 262144 draws: the mean's standard error is 0.002, the deviation's 0.0014.
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.007)
    assert stats.kstest(noise.ravel()[:20_000], "norm").pvalue > 0.001
    neighbours = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01


def test_noise_depends_on_seed_and_sample_alone() -> None:
    first = noise_volume(SHAPE, std=1.0, seed=3, sample=1)
    assert np.array_equal(first, noise_volume(SHAPE, std=1.0, seed=3, sample=1))
    others = [noise_volume(SHAPE, std=1.0, seed=seed, sample=sample) for seed, sample in ((4, 1), (3, 2), (1, 3))]
    assert all(abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.3 for other in others)


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    whole, part = (noise_volume(SHAPE, std=std, seed=3, sample=1) for std in (1.0, 0.3))
    assert part.dtype == np.float32
    np.testing.assert_allclose(part, 0.3 * whole, rtol=1e-6)


def test_noise_is_pinned() -> None:
    """A saved report's seed must give the same image in every later version."""
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence([3, 1])))
    assert np.array_equal(
        noise_volume(SHAPE, std=1.0, seed=3, sample=1), expected.standard_normal(SHAPE, dtype=np.float32)
    )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_time_grid_goes_from_noise_to_image(steps: int) -> None:
    assert uniform_time_grid(steps) == pytest.approx([i / steps for i in range(steps + 1)], abs=1e-15)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_euler_is_exact_for_a_constant_velocity(steps: int) -> None:
    x_0, velocity = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    found = euler(step_of(lambda x_t, y, t: y), x_0, velocity, uniform_time_grid(steps))
    np.testing.assert_allclose(found, x_0 + velocity, rtol=1e-13)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_grows_as_compound_interest(steps: int) -> None:
    x_0 = np.array([1.0, -2.0])
    found = euler(step_of(lambda x_t, y, t: x_t), x_0, x_0, uniform_time_grid(steps))
    np.testing.assert_allclose(found, x_0 * (1 + 1 / steps) ** steps, rtol=1e-12)


def test_euler_follows_a_grid_that_is_not_uniform() -> None:
    # dx/dt = t: a left Riemann sum.
    grid = np.array([0.0, 0.1, 0.4, 1.0])
    found = euler(step_of(lambda x_t, y, t: np.full(1, t)), np.zeros(1), np.zeros(1), grid)
    assert found == pytest.approx([0.1 * 0.3 + 0.4 * 0.6])


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_straight_path_to_x_1_ends_there(steps: int) -> None:
    x_0, x_1 = np.array([0.25, -2.0]), np.array([1.5, 0.75])
    found = euler(step_of(lambda x_t, y, t: (y - x_t) / (1 - t)), x_0, x_1, uniform_time_grid(steps))
    if steps == 1:
        assert np.array_equal(found, x_1)
    np.testing.assert_allclose(found, x_1, rtol=1e-12)
