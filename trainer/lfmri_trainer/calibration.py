"""Whether the deviation over samples says how far the truth lies, and the scale that makes it so.

`lfmri enhance` averages the two planes that contain the thick axis, which takes every slice of both. Along the lines
where a few slices of one plane cross a few of the other, that average is known from these slices alone; there the
samples are compared with the truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from lfmri_runtime.backends import Step
from lfmri_runtime.calibration import FITTED_LEVEL, Calibration
from lfmri_runtime.contract import Processing
from lfmri_runtime.enhancer import BATCH
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.sampler import uniform_time_grid
from lfmri_runtime.slices import batches, noise_volume, pad, padded_shape, plane_normals, slices_of
from lfmri_trainer.dataset import LEAST_SIGNAL
from lfmri_trainer.flow import SIGNAL
from lfmri_trainer.working import WorkingPair

Float32Array = NDArray[np.float32]
Progress = Callable[[int, int], None]

#: Draws of each scan. A deviation of so few is off by a third; the scale is fitted with that in it.
SAMPLES = 5
#: Slices of each plane, evenly spread over those with signal. More scans tell more than more lines of the same scan.
SLICES = 3
#: Of the noise: that of `lfmri enhance` when nothing is asked.
SEED = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Crossings:
    """Samples and truth along the lines where chosen slices of the two planes cross.

    Attributes:
        indices: of the chosen slices, along the first and the second axis that is not thick.
        mean: of the samples, clipped to the standard scale, (first, second, thick axis).
        std: their standard deviation, likewise.
        truth: x_1, likewise.
    """

    indices: tuple[NDArray[np.intp], NDArray[np.intp]]
    mean: Float32Array
    std: Float32Array
    truth: Float32Array

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Where calibration is judged: the voxels whose reference holds signal, the same rule for head and brain."""
        return self.truth > SIGNAL


def crossings(
    step: Step,
    pair: WorkingPair,
    processing: Processing,
    *,
    source_std: float,
    steps: int,
    samples: int,
    count: int = SLICES,
) -> Crossings:
    """Sample a few slices of both planes and keep the lines where they cross, as `Enhancer.enhance` would give them.

    Args:
        step: opened.
        pair: on the working grid.
        processing: of the bundle.
        source_std: of x_0.
        steps: of the Euler method.
        samples: draws of x_0, at least 2.
        count: slices of each plane.

    Raises:
        InputRefused: no slice of the pair holds signal.
    """
    shape, thick = cast(tuple[int, int, int], pair.condition.shape), pair.thick_axis
    truth = pair.target[tuple(slice(0, length) for length in shape)].astype(np.float32)
    y = pad(pair.condition.astype(np.float32), processing.multiple)
    first, second = plane_normals(thick)
    chosen = {normal: _spread(pair.parameters.pair, truth, normal, count) for normal in (first, second)}
    drawn = []
    for sample in range(samples):
        x_0 = noise_volume(padded_shape(shape, processing.multiple), std=source_std, seed=SEED, sample=sample)
        lines = [
            _lines(step, x_0, y, normal=normal, other=other, thick=thick, chosen=chosen, steps=steps)
            for normal, other in ((first, second), (second, first))
        ]
        drawn.append((lines[0] + lines[1].swapaxes(0, 1))[..., : shape[thick]] / 2)
    return Crossings(
        indices=(chosen[first], chosen[second]),
        mean=np.mean(drawn, axis=0).clip(0, processing.high_field.limit),
        std=np.std(drawn, axis=0, ddof=1),
        truth=np.moveaxis(truth, thick, -1)[np.ix_(chosen[first], chosen[second])],
    )


def fit_scale(error: Float32Array, std: Float32Array) -> float:
    """The scale at which 90 % of the errors lie in the 90 % interval, mean +- 1.645 * scale * std.

    Args:
        error: mean of the samples minus truth, (voxels,).
        std: standard deviation over samples, likewise.

    Returns:
        infinity where more than a tenth of the voxels have an error and no deviation: no scale will do.
    """
    far = np.abs(error).astype(np.float64)
    ratio = np.divide(far, norm.ppf((1 + FITTED_LEVEL) / 2) * std, out=np.full_like(far, np.inf), where=std > 0)
    ratio[far == 0] = 0
    return float(np.quantile(ratio, FITTED_LEVEL, method="inverted_cdf"))


def coverage(error: Float32Array, deviation: Float32Array, level: float) -> float:
    """Share of the voxels whose truth lies in the central interval of a normal distribution with this deviation."""
    return float(np.mean(np.abs(error) <= norm.ppf((1 + level) / 2) * deviation))


def calibrate(
    step: Step,
    pairs: Sequence[WorkingPair],
    processing: Processing,
    *,
    source_std: float,
    steps: Sequence[int],
    progress: Progress = lambda done, total: None,
) -> tuple[Calibration, ...]:
    """Fit the scale of each number of Euler steps.

    Args:
        step: opened.
        pairs: of the validation split; none gives no calibration.
        processing: of the bundle.
        source_std: of x_0.
        steps: of the Euler method. One step is left out: it gives nearly the posterior mean whatever the noise, so its
            samples say nothing of the error. So is a number for which no scale will do.
        progress: called with (scans done, scans in all).
    """
    several = [number for number in steps if number > 1]
    found = []
    for place, number in enumerate(several if pairs else ()):
        lines = []
        for pair in pairs:
            lines.append(crossings(step, pair, processing, source_std=source_std, steps=number, samples=SAMPLES))
            progress(place * len(pairs) + len(lines), len(several) * len(pairs))
        error = np.concatenate([(line.mean - line.truth)[line.inside] for line in lines])
        scale = fit_scale(error, np.concatenate([line.std[line.inside] for line in lines]))
        subjects = tuple(sorted({pair.parameters.subject for pair in pairs}))
        if 0 < scale < np.inf:
            found.append(
                Calibration(
                    steps=number,
                    samples=SAMPLES,
                    scale=float(f"{scale:.6g}"),
                    subjects=subjects,
                    scans=len(pairs),
                    voxels=len(error),
                )
            )
    return tuple(found)


def _lines(
    step: Step,
    x_0: Float32Array,
    y: Float32Array,
    *,
    normal: int,
    other: int,
    thick: int,
    chosen: dict[int, NDArray[np.intp]],
    steps: int,
) -> Float32Array:
    """One sample of one plane's chosen slices, along their lines with the other plane's, (slices, lines, z)."""
    noise, condition = (slices_of(v, normal=normal, thick_axis=thick)[chosen[normal]][:, None] for v in (x_0, y))
    stream = ((noise[part], condition[part]) for part in batches(len(noise), BATCH))
    x_1 = np.concatenate(list(step.flow(stream, uniform_time_grid(steps))))
    lines: Float32Array = x_1[:, 0][..., chosen[other]].swapaxes(1, 2)
    return lines


def _spread(name: str, truth: Float32Array, normal: int, count: int) -> NDArray[np.intp]:
    """Indices in the middles of `count` equal parts of the slices with signal."""
    kept = np.flatnonzero((np.moveaxis(truth, normal, 0) > SIGNAL).mean(axis=(1, 2)) > LEAST_SIGNAL)
    if not len(kept):
        raise InputRefused(
            f"{name}: no slice holds signal in {LEAST_SIGNAL:.0%} of its voxels; expected a head: look at its subject"
        )
    places = (np.arange(count) + 0.5) / count * len(kept)
    return kept[np.unique(places.astype(np.intp))]
