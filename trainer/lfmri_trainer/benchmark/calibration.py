"""Whether the bundle's uncertainty is right: how often the truth lies in its intervals, and error against deviation.

OUT/results/<set>/uncertainty-<steps>/<pair>.npz    error and bare deviation of every voxel looked at
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.calibration import calibration_of
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.page.article import Section, Table
from lfmri_trainer.baselines.fitted import load_arrays, save_arrays
from lfmri_trainer.baselines.method import Progress
from lfmri_trainer.benchmark.run import RESULTS, Scan, SetResults
from lfmri_trainer.benchmark.tables import csv_text
from lfmri_trainer.calibration import SLICES, coverage, crossings
from lfmri_trainer.working import WorkingPair, working_pairs

Float32Array = NDArray[np.float32]

#: Of the central intervals whose coverage is reported.
LEVELS = (0.5, 0.8, 0.9, 0.95)
#: Of equal numbers of voxels, by predicted deviation.
BINS = 10
#: Scans of a set that are looked at, evenly spread over its list: minutes on two cores, and four draws of the noise.
MOST_SCANS = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Calibration on one set at one number of Euler steps.

    Attributes:
        set_name: InD or OOD.
        steps: of the Euler method.
        samples: of each scan.
        scale: of the contract; None where it has none, then the bare deviation is judged.
        scans: that were looked at.
        voxels: of them.
        coverage: by level, the share of voxels whose truth lies in the interval.
        bins: predicted deviation and error of each bin, both root mean squares (Levi et al., Sensors 22 (2022), 5540).
        correlation: Spearman's, of absolute error and predicted deviation; NaN where all deviations are alike.
    """

    set_name: str
    steps: int
    samples: int
    scale: float | None
    scans: int
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
    chosen = [(results.test_set.name, _chosen(results.scans)) for results in every]
    total, done = len(steps) * sum(len(scans) for _, scans in chosen), 0
    found = []
    for name, scans in chosen:
        opened = working_pairs(pairs, [scan.pair for scan in scans], bundle.contract.processing)
        for number in steps:
            arrays = []
            for scan, pair in zip(scans, opened, strict=True):
                path = out / RESULTS / name / f"uncertainty-{number}" / f"{scan.pair.pair}.npz"
                arrays.append(_kept_or_made(path, step, bundle, scan, pair, steps=number, samples=samples))
                done += 1
                progress(done, total)
            error, std = np.concatenate(arrays, axis=1)
            found.append(judge(error, std, bundle, set_name=name, steps=number, samples=samples, scans=len(scans)))
    return found


def judge(
    error: Float32Array, std: Float32Array, bundle: Bundle, *, set_name: str, steps: int, samples: int, scans: int
) -> Measured:
    """Compare errors with the deviation that the contract's scale makes of the one over samples, (voxels,) each."""
    calibration = calibration_of(bundle.contract.uncertainty, steps)
    scale = None if calibration is None else calibration.scale
    deviation = std * np.float32(1 if scale is None else scale)
    parts = np.array_split(np.argsort(deviation, kind="stable"), BINS)
    alike = deviation.min() == deviation.max()
    return Measured(
        set_name=set_name,
        steps=steps,
        samples=samples,
        scale=scale,
        scans=scans,
        voxels=len(error),
        coverage={level: coverage(error, deviation, level) for level in LEVELS},
        bins=tuple((_root_mean_square(deviation[part]), _root_mean_square(error[part])) for part in parts),
        correlation=math.nan if alike else float(spearmanr(np.abs(error), deviation).statistic),
    )


def calibration_sections(bundle: Bundle, measured: Sequence[Measured]) -> list[Section]:
    """Two tables for each set."""
    sections = []
    for name in dict.fromkeys(m.set_name for m in measured):
        own = [m for m in measured if m.set_name == name]
        text = (
            f"{own[0].voxels:,} voxels with signal of {own[0].scans} scan{'s' if own[0].scans > 1 else ''}, "
            f"{own[0].samples} samples each, on the lines where slices of both planes cross. An interval is the mean "
            "of the samples +- the normal quantile times the predicted deviation, which is the standard deviation over "
            "samples times the contract's scale."
        )
        sections += [
            Section(
                heading=f"{name}: calibration", paragraphs=(text, *_uncalibrated(bundle, own)), table=_coverages(own)
            ),
            Section(
                heading=f"{name}: error against predicted deviation",
                paragraphs=("Tenths of the voxels by predicted deviation; root mean squares on the standard scale.",),
                table=_bins(own),
            ),
        ]
    return sections


def calibration_csv(measured: Sequence[Measured]) -> str:
    """One line a set, number of steps and interval or bin: what was predicted and what was found."""
    lines: list[list[object]] = []
    for m in measured:
        about = [m.set_name, m.steps, m.samples, 1 if m.scale is None else m.scale]
        lines += [[*about, "coverage", level, repr(share)] for level, share in m.coverage.items()]
        lines += [[*about, "deviation", repr(predicted), repr(error)] for predicted, error in m.bins]
        lines.append([*about, "rank correlation", 1, repr(m.correlation)])
    return csv_text(["set", "steps", "samples", "scale", "measure", "predicted", "found"], lines)


def _chosen(scans: Sequence[Scan]) -> list[Scan]:
    count = min(MOST_SCANS, len(scans))
    return [scans[n * len(scans) // count] for n in range(count)]


def _kept_or_made(
    path: Path, step: Step, bundle: Bundle, scan: Scan, pair: WorkingPair, *, steps: int, samples: int
) -> Float32Array:
    """Error and bare deviation of the voxels with signal, (2, voxels)."""
    about = {
        "bundle": bundle.sha256,
        "scan": scan.identity,
        "draws": f"{steps} steps, {samples} samples, {SLICES} slices",
    }
    if path.is_file():
        try:
            arrays, found = load_arrays(path)
            kept: Float32Array = arrays["voxels"]
        except (KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputRefused(f"{path}: {reason}; expected a result of this benchmark: remove it and resume") from None
        if found == about:
            return kept
    contract = bundle.contract
    lines = crossings(step, pair, contract.processing, source_std=contract.source_std, steps=steps, samples=samples)
    voxels = np.stack([(lines.mean - lines.truth)[lines.inside], lines.std[lines.inside]])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, {"voxels": voxels}, about)
    return voxels


def _uncalibrated(bundle: Bundle, measured: Sequence[Measured]) -> Iterator[str]:
    bare = ", ".join(str(m.steps) for m in measured if m.scale is None)
    if bare:
        yield f"{bundle.contract.name} has no calibration for {bare} steps: the bare deviation is judged, scale 1."


def _coverages(measured: Sequence[Measured]) -> Table:
    rows = [
        (
            (str(m.steps), False),
            ("1 (bare)" if m.scale is None else f"{m.scale:.2f}", False),
            *((f"{share:.1%}", False) for share in m.coverage.values()),
            (f"{m.correlation:.2f}", False),
        )
        for m in measured
    ]
    levels = [f"truth in {level:.0%} interval" for level in LEVELS]
    return Table(head=("Euler steps", "scale", *levels, "rank correlation"), rows=tuple(rows))


def _bins(measured: Sequence[Measured]) -> Table:
    head = [f"{what}, {m.steps} steps" for m in measured for what in ("predicted", "error")]
    rows = [
        ((str(n + 1), False), *((f"{value:.4f}", False) for m in measured for value in m.bins[n])) for n in range(BINS)
    ]
    return Table(head=("tenth", *head), rows=tuple(rows))


def _root_mean_square(values: Float32Array) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
