"""Whether the bundle's uncertainty is right: how often the truth lies in its intervals, and error against deviation.

OUT/results/<set>/uncertainty-<steps>/<pair>.npz    error and bare deviation of every voxel looked at
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.calibration import calibration_of
from lfmri_trainer.baselines.method import Progress
from lfmri_trainer.benchmark.results import code_hash, keep, kept
from lfmri_trainer.benchmark.run import RESULTS, Scan, SetResults, spread
from lfmri_trainer.calibration import SLICES, coverage, crossings
from lfmri_trainer.working import WorkingPair, working_pairs

Float32Array = NDArray[np.float32]

#: Of the central intervals whose coverage is reported.
LEVELS = (0.5, 0.8, 0.9, 0.95)
#: Of equal numbers of voxels, by predicted deviation.
BINS = 10
#: Scans of a set that are looked at, evenly spread over its list: minutes on two cores, and four draws of the noise.
MOST_SCANS = 4
#: The interval whose coverage is also reported scan by scan: a mean over people may hide one whom it does not fit.
BY_SCAN = 0.9
#: Modules that the kept voxels stand on.
CODE = (
    __name__,
    *(f"lfmri_trainer.{name}" for name in ("calibration", "dataset", "flow", "working")),
    *(f"lfmri_runtime.{name}" for name in ("sampler", "slices")),
    *(f"lfmri_runtime.{name}" for name in ("geometry", "orientation", "intensity", "tissue", "resample")),
)
_CODE = code_hash(*CODE)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Calibration on one set at one number of Euler steps.

    Attributes:
        set_name: InD or OOD.
        steps: of the Euler method.
        samples: of each scan.
        scale: of the contract; None where it has none, then the bare deviation is judged.
        scans: that were looked at, and of each the share of voxels whose truth lies in its BY_SCAN interval.
        voxels: of them.
        coverage: by level, the share of voxels whose truth lies in the interval.
        bins: predicted deviation and error of each bin, both root mean squares (Levi et al., Sensors 22 (2022), 5540).
        correlation: Spearman's, of absolute error and predicted deviation; NaN where all deviations are alike.
    """

    set_name: str
    steps: int
    samples: int
    scale: float | None
    scans: Mapping[str, float]
    voxels: int
    coverage: Mapping[float, float]
    bins: tuple[tuple[float, float], ...]
    correlation: float


def measure(
    pairs: Path,
    out: Path,
    bundle: Bundle,
    every: Sequence[SetResults],
    *,
    steps: Sequence[int],
    samples: int,
    threads: int,
    progress: Progress,
) -> list[Measured]:
    """Sample every set's scans, or take over what an earlier call left in `out`.

    Args:
        pairs: the folder.
        out: of the benchmark.
        bundle: the proposed model.
        every: the scored sets.
        steps: numbers of Euler steps, at least 2.
        samples: of each scan, at least 2.
        threads: 0 takes all cores.
        progress: called with (scans done, scans in all).

    Raises:
        InputRefused: a result that cannot be read, or a scan without signal.
    """
    step = open_backend(bundle, threads=threads)
    chosen = [(results.test_set.name, spread(results.scans, MOST_SCANS)) for results in every]
    total, done = len(steps) * sum(len(scans) for _, scans in chosen), 0
    found = []
    for name, scans in chosen:
        opened = working_pairs(pairs, [scan.pair for scan in scans], bundle.contract.processing)
        for number in steps:
            arrays = {}
            for scan, pair in zip(scans, opened, strict=True):
                path = out / RESULTS / name / f"uncertainty-{number}" / f"{scan.pair.pair}.npz"
                arrays[scan.pair.pair] = _kept_or_made(path, step, bundle, scan, pair, steps=number, samples=samples)
                done += 1
                progress(done, total)
            found.append(judge(arrays, bundle, set_name=name, steps=number, samples=samples))
    return found


def judge(scans: Mapping[str, Float32Array], bundle: Bundle, *, set_name: str, steps: int, samples: int) -> Measured:
    """Compare errors with the deviation that the contract's scale makes of the one over samples.

    Args:
        scans: by name, (2, voxels): error and bare deviation.
        bundle: whose scale is judged.
        set_name: InD or OOD.
        steps: of the Euler method.
        samples: of each scan.
    """
    calibration = calibration_of(bundle.contract.uncertainty, steps)
    scale = None if calibration is None else calibration.scale
    factor = np.float32(1 if scale is None else scale)
    error, std = np.concatenate(list(scans.values()), axis=1)
    deviation = std * factor
    parts = np.array_split(np.argsort(deviation, kind="stable"), BINS)
    alike = deviation.min() == deviation.max()
    return Measured(
        set_name=set_name,
        steps=steps,
        samples=samples,
        scale=scale,
        scans={name: coverage(own[0], own[1] * factor, BY_SCAN) for name, own in scans.items()},
        voxels=len(error),
        coverage={level: coverage(error, deviation, level) for level in LEVELS},
        bins=tuple((_root_mean_square(deviation[part]), _root_mean_square(error[part])) for part in parts),
        correlation=math.nan if alike else float(spearmanr(np.abs(error), deviation).statistic),
    )


def _kept_or_made(
    path: Path, step: Step, bundle: Bundle, scan: Scan, pair: WorkingPair, *, steps: int, samples: int
) -> Float32Array:
    """Error and bare deviation of the voxels with signal, (2, voxels)."""
    about = {
        "bundle": bundle.sha256,
        "scan": scan.identity,
        "code": _CODE,
        "draws": f"{steps} steps, {samples} samples, {SLICES} slices",
    }
    found = kept(path, about, "voxels")
    if found is not None:
        return found[0][0]
    contract = bundle.contract
    lines = crossings(step, pair, contract.processing, source_std=contract.source_std, steps=steps, samples=samples)
    voxels = np.stack([(lines.mean - lines.truth)[lines.inside], lines.std[lines.inside]])
    keep(path, {"voxels": voxels}, about)
    return voxels


def _root_mean_square(values: Float32Array) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
