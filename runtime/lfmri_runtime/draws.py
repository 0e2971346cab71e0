"""Draws of a whole volume: the Euler loop over every slice of every plane, and what several draws say together."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.sampler import uniform_time_grid
from lfmri_runtime.slices import batches, noise_volume, plane_normals, slices_of

Float32Array = NDArray[np.float32]
Progress = Callable[[int, int], None]


def mean_and_deviation(
    step: Step,
    y: Float32Array,
    shape: tuple[int, int, int],
    *,
    thick: int | None,
    source_std: float,
    steps: int,
    samples: int,
    seed: int,
    batch: int,
    progress: Progress,
) -> tuple[Float32Array, Float32Array | None]:
    """Mean and standard deviation over samples, by Welford's running update; one batch in flight.

    Args:
        step: an opened back end.
        y: the condition, padded to the network's multiple.
        shape: of the volume before it was padded.
        thick: axis of the thick slices; None cuts all three planes.
        source_std: standard deviation of x_0.
        steps: of the Euler method.
        samples: draws of x_0.
        seed: of the noise.
        batch: slices that pass through the network at once.
        progress: called with (network calls done, network calls in all).

    Returns:
        Mean and deviation on the standard scale, of the shape; no deviation of one sample.
    """
    total = samples * sum(-(-shape[normal] // batch) for normal in plane_normals(thick))
    mean = np.zeros(shape, dtype=np.float32)
    squares = np.zeros(shape, dtype=np.float32) if samples > 1 else None
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for sample in range(samples):
        x_0 = noise_volume(y.shape, std=source_std, seed=seed, sample=sample)
        drawn = _draw(step, x_0, y, shape, thick=thick, steps=steps, batch=batch, count=count)
        drawn -= mean
        mean += drawn / np.float32(sample + 1)
        if squares is not None:
            squares += drawn**2 * np.float32(sample / (sample + 1))
    return mean, None if squares is None else np.sqrt(squares / np.float32(samples - 1))


def _draw(
    step: Step,
    x_0: Float32Array,
    y: Float32Array,
    shape: tuple[int, int, int],
    *,
    thick: int | None,
    steps: int,
    batch: int,
    count: Callable[[], None],
) -> Float32Array:
    """One sample: every slice of every plane, averaged over the planes."""
    normals = plane_normals(thick)
    time_grid = uniform_time_grid(steps)
    result = np.zeros(shape, dtype=np.float32)
    for normal in normals:
        noise, condition, target = (slices_of(v, normal=normal, thick_axis=thick) for v in (x_0, y, result))
        parts = list(batches(shape[normal], batch))
        stream = (_stacked(noise, condition, part) for part in parts)
        rows, columns = target.shape[1:]
        for part, x_1 in zip(parts, step.flow(stream, time_grid), strict=True):
            target[part] += x_1[:, 0, :rows, :columns] / np.float32(len(normals))
            count()
    return result


def _stacked(noise: Float32Array, condition: Float32Array, part: slice) -> tuple[Float32Array, Float32Array]:
    """One batch, (batch, 1, rows, columns) each, contiguous as the back ends want it."""
    return np.ascontiguousarray(noise[part])[:, None], np.ascontiguousarray(condition[part])[:, None]
