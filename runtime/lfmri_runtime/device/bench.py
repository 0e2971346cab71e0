"""How fast contestants enhance one scan, in rounds that take turns, file to file."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.device.cold import Opener, cold_start
from lfmri_runtime.device.energy import EnergyMeter
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.golden import failures, measure_parity, read_golden
from lfmri_runtime.job import Outputs, enhance_file
from lfmri_runtime.machine import identity, memory_gib
from lfmri_runtime.volume import read_scan

if TYPE_CHECKING:
    from lfmri_runtime.backends.tensorrt.cuda import Device

Float32Array = NDArray[np.float32]
Progress = Callable[[str], None]

#: In the order in which they happen; `network` is the back end's, the rest is ours.
STAGES = ("read", "prepare", "network", "loop", "check", "restore", "write")


class TimedStep(Step):
    """A step that notes how long every batch of a stream took, a slice."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.name, self.provider, self.precision = step.name, step.provider, step.precision
        self.per_slice: list[float] = []

    @property
    def seconds(self) -> float:
        """As the wrapped step counts them."""
        return self._step.seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._step.seconds = value

    @property
    def gpu(self) -> "Device | None":
        """As the wrapped step has it."""
        return self._step.gpu

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """As the wrapped step."""
        return self._step(x_t, y, t, dt)

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        """As the wrapped step; the time between two results counts."""
        before = time.perf_counter()
        for x_1 in self._step.flow(batches, time_grid):
            now = time.perf_counter()
            self.per_slice.append((now - before) / len(x_1))
            before = now
            yield x_1


@dataclass(eq=False)
class Contestant:
    """One back end of a benchmark, and what it did.

    Attributes:
        label: as the user named it.
        enhancer: opened here.
        volumes: seconds of each round, from reading the file to the last byte written.
        stages: seconds of each round by stage.
        joules: of each round; None where the board reports none.
    """

    label: str
    enhancer: Enhancer
    volumes: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)


def bench(
    openers: dict[str, Opener], scan: Path, *, rounds: int, steps: int, say: Progress = lambda line: None
) -> dict[str, Any]:
    """Measure contestants on one scan.

    Args:
        openers: what to measure, by label; the first is what the others are compared with.
        scan: the file that is enhanced.
        rounds: that count; one before them does not.
        steps: of the Euler method.
        say: called with one line as each part begins.

    Returns:
        figures as plain values: seconds, MiB, joules.
    """
    read = read_scan(scan)
    contestants = [Contestant(label, _timed(opener())) for label, opener in openers.items()]
    colds = {}
    for label, opener in openers.items():
        say(f"cold start of {label}")
        colds[label] = cold_start(opener, (read.data, read.affine))
    say("golden checks")
    bundle = contestants[0].enhancer.bundle
    parity = {c.label: measure_parity(c.enhancer.step, read_golden(bundle)) for c in contestants}
    meter = EnergyMeter()
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "a round that does not count")
        for contestant in contestants if number % 2 else reversed(contestants):
            meter = _run(contestant, scan, steps=steps)
        if number == 0:
            for contestant in contestants:
                for figures in (contestant.volumes, contestant.stages, contestant.joules, _per_slice(contestant)):
                    figures.clear()
    gpu = next(filter(None, (c.enhancer.step.gpu for c in contestants)), None)
    return {
        "machine": {**identity(gpu), "memory_gib": memory_gib(), "load": [round(v, 2) for v in os.getloadavg()]},
        "bundle": {"name": bundle.contract.name, "version": bundle.contract.version, "sha256": bundle.sha256},
        "scan": {"shape": list(read.data.shape), "voxel_size_mm": [round(size, 3) for size in read.voxel_size]},
        "steps": steps,
        "rounds": rounds,
        "energy": meter.source,
        "contestants": {
            c.label: {
                "backend": {"name": c.enhancer.step.name, "provider": c.enhancer.step.provider},
                "precision": c.enhancer.step.precision,
                "golden": {"passed": not failures(parity[c.label]), "least_psnr_db": _least(parity[c.label])},
                "cold_start_s": round(colds[c.label].open_seconds, 3),
                "first_run_s": round(colds[c.label].first_seconds, 3),
                "peak_memory_mib": round(colds[c.label].peak_mib),
                "gpu_memory_mib": _whole(colds[c.label].gpu_mib),
                "volume_s": _spread(c.volumes),
                "slice_s": _spread(_per_slice(c)),
                "stages_s": {name: round(float(np.median([s[name] for s in c.stages])), 4) for name in STAGES},
                "own_share": _spread([1 - s["network"] / v for s, v in zip(c.stages, c.volumes, strict=True)]),
                "energy_j": None if None in c.joules else _spread([j for j in c.joules if j is not None]),
            }
            for c in contestants
        },
        "ratios": {c.label: _ratio(contestants[0], c) for c in contestants[1:]},
    }


def _timed(enhancer: Enhancer) -> Enhancer:
    return Enhancer(enhancer.bundle, step=TimedStep(enhancer.step), batch=enhancer.batch)


def _per_slice(contestant: Contestant) -> list[float]:
    assert isinstance(contestant.enhancer.step, TimedStep)
    return contestant.enhancer.step.per_slice


def _run(contestant: Contestant, scan: Path, *, steps: int) -> EnergyMeter:
    """Enhance the scan once, file to file."""
    with tempfile.TemporaryDirectory() as folder, EnergyMeter() as meter:
        start = time.perf_counter()
        outputs = Outputs(Path(folder) / "enhanced.nii.gz")
        document = enhance_file(contestant.enhancer, scan, outputs, steps=steps, progress=lambda done, total: None)
        contestant.volumes.append(time.perf_counter() - start)
    contestant.stages.append(document["seconds"])
    contestant.joules.append(meter.joules)
    return meter


def _spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {f"p{percent}": round(float(np.percentile(values, percent)), 5) for percent in (50, 95)}


def _ratio(first: Contestant, other: Contestant) -> dict[str, float]:
    """How many times as fast the first is, volume by volume of the same round."""
    ratios = [theirs / ours for ours, theirs in zip(first.volumes, other.volumes, strict=True)]
    return {
        "median": round(float(np.median(ratios)), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def _whole(figure: float | None) -> int | None:
    return None if figure is None else round(figure)


def _least(rows: list[Any]) -> float | None:
    figures = [row.psnr for row in rows]
    return None if None in figures else round(min(figures), 1)
