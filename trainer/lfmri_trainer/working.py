"""Pairs on the working grid: memory-mapped arrays that the data loader cuts slices from.

    PAIRS/working/<key>/condition/<pair>.npy     y, the scaled low-field scan, float16
    PAIRS/working/<key>/target/<subject>-<anatomy>.npy    x_1 on the standard scale, float16

The key is made of the processing, so that another voxel size or another training split gets arrays of its own.
Everything here that the runtime also does is the runtime's own code.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.contract import Processing, render
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import atomic_write
from lfmri_runtime.geometry import AXES, WorkingGrid
from lfmri_runtime.intensity import HighFieldStandard, LowFieldScale
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, read_volume, subject_path

Float16Array = NDArray[np.float16]


@dataclass(frozen=True)
class WorkingPair:
    """One pair on the working grid.

    Attributes:
        parameters: its row of pairs.csv.
        condition: y, memory-mapped, (x, y, z), in [0, low-field limit].
        target: x_1, memory-mapped, at least as large on every axis; both start at the same voxel.
    """

    parameters: PairParameters
    condition: Float16Array
    target: Float16Array

    @property
    def thick_axis(self) -> int:
        """The thick axis of the scan, 0 to 2 in RAS order."""
        return AXES.index(self.parameters.thick_axis)


def pairs_identity(pairs: Sequence[PairParameters], processing: Processing) -> str:
    """SHA-256 of pairs' draws and their processing: what was learned from others is another thing."""
    described = json.dumps([asdict(pair) for pair in pairs]) + render(processing)
    return hashlib.sha256(described.encode()).hexdigest()


def learn_processing(folder: Path, pairs: Sequence[PairParameters], *, voxel_size: float, multiple: int) -> Processing:
    """The intensity standards; the low-field one is learned on the training split.

    Raises:
        InputRefused: there is no training pair.
    """
    subjects = sorted({pair.subject for pair in pairs if pair.split == "train"})
    if not subjects:
        raise InputRefused(
            f"{folder}: no pair has the split train; expected some: simulate with fewer subjects held out"
        )
    standard = HighFieldStandard()
    means = [float(standard.apply(brain, mask)[mask].mean()) for brain, mask in (_brain(folder, s) for s in subjects)]
    return Processing(
        voxel_size=voxel_size,
        multiple=multiple,
        planes="containing the thick axis",
        low_field=LowFieldScale(target=round(float(np.mean(means)), 6)),
        high_field=standard,
    )


def working_pairs(
    folder: Path,
    pairs: Sequence[PairParameters],
    processing: Processing,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[WorkingPair]:
    """Put pairs on the working grid, or open what an earlier call left there, unless its source is newer."""
    place = folder / "working" / hashlib.sha256(render(processing).encode()).hexdigest()[:16]
    result = []
    for number, pair in enumerate(pairs):
        target_path = place / "target" / f"{pair.subject}-{kind_of(folder, pair)}.npy"
        condition_path = place / "condition" / f"{pair.pair}.npy"
        kinds = {"brain", "mask", kind_of(folder, pair)}
        if not _is_newer(target_path, *(subject_path(folder, pair.subject, kind) for kind in kinds)):
            _save(target_path, _target(folder, pair, processing))
        if not _is_newer(condition_path, low_path(folder, pair)):
            _save(condition_path, _condition(folder, pair, processing))
        condition, target = (np.load(path, mmap_mode="r") for path in (condition_path, target_path))
        result.append(WorkingPair(pair, condition, target))
        progress(number + 1, len(pairs))
    return result


def _is_newer(path: Path, *sources: Path) -> bool:
    """Whether an array is there and none of its sources was written after it; a missing source is found on reading."""
    if not path.is_file():
        return False
    made = path.stat().st_mtime_ns
    return all(source.is_file() and source.stat().st_mtime_ns <= made for source in sources)


def _condition(folder: Path, pair: PairParameters, processing: Processing) -> NDArray[np.float32]:
    data, affine = read_volume(low_path(folder, pair))
    grid = WorkingGrid.of_scan(data.shape, affine, voxel_size=processing.voxel_size)
    scale = processing.low_field.scale_of(data)
    return processing.low_field.apply(grid.regrid(data), scale)


def _target(folder: Path, pair: PairParameters, processing: Processing) -> NDArray[np.float32]:
    """The high-field volume, its tissue means found inside the brain also where the head is kept."""
    brain, mask = _brain(folder, pair.subject)
    volume, affine = read_volume(subject_path(folder, pair.subject, kind_of(folder, pair)))
    standard = processing.high_field.apply(volume, mask)
    grid = WorkingGrid.of_scan(brain.shape, affine, voxel_size=processing.voxel_size)
    return np.clip(grid.regrid(standard), 0, processing.high_field.limit)


def kind_of(folder: Path, pair: PairParameters) -> str:
    """Which volume a pair's reference is: head, or brain where there is no head or it was not scanned."""
    head = pair.anatomy == "head" and subject_path(folder, pair.subject, "head").is_file()
    return "head" if head else "brain"


def _brain(folder: Path, subject: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    brain, _ = read_volume(subject_path(folder, subject, "brain"))
    mask, _ = read_volume(subject_path(folder, subject, "mask"))
    return brain, mask > 0


def _save(path: Path, volume: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, volume.astype(np.float16), allow_pickle=False)
