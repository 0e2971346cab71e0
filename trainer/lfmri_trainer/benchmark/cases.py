"""The test sets: which slices of which unseen scans are scored, and against what.

A set is one preset's pairs of the split test. Its slices are shared out evenly among the pairs; those of a pair are
spread evenly over the slices that the scores' rule keeps, in one plane that contains the thick axis.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.contract import Processing, render
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.evaluation.scores import MIN_COVERAGE
from lfmri_runtime.files import sha256_file
from lfmri_runtime.geometry import WorkingGrid
from lfmri_runtime.slices import plane_normals
from lfmri_trainer.baselines.method import Float32Array, Request
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, read_volume, subject_path
from lfmri_trainer.working import WorkingPair, kind_of, working_pairs

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A test set.

    Attributes:
        name: in tables: InD or OOD.
        preset: of its pairs.
        slices: that are asked for; the pairs may hold fewer.
        pairs: rows of pairs.csv, sorted by name.
    """

    __test__ = False  # pytest takes it for tests

    name: str
    preset: str
    slices: int
    pairs: tuple[PairParameters, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """The slices of one pair.

    Attributes:
        pair: its row of pairs.csv.
        request: what a method is given.
        reference: x_1 on the standard scale, (slices, rows, columns).
        mask: of the brain, likewise.
        identity: changes whenever a method's scores on it may.
    """

    pair: PairParameters
    request: Request
    reference: Float32Array
    mask: Mask
    identity: str


def choose_sets(rows: Sequence[PairParameters], asked: Sequence[tuple[str, str, int]]) -> list[TestSet]:
    """Choose the test pairs of each (name, preset, slices); sets without pairs are left out.

    Raises:
        InputRefused: no set has pairs.
    """
    sets = []
    for name, preset, slices in asked:
        chosen = sorted((r for r in rows if r.split == "test" and r.preset == preset), key=lambda row: row.pair)
        if chosen:
            sets.append(TestSet(name=name, preset=preset, slices=slices, pairs=tuple(chosen[:slices])))
    if not sets:
        presets = " or ".join(preset for _, preset, _ in asked)
        raise InputRefused(
            f"no pair of the split test has the preset {presets}; expected some: simulate with --test-subject, or name "
            "other presets with --ind and --ood"
        )
    return sets


def open_cases(folder: Path, test_set: TestSet, processing: Processing) -> Iterator[Case]:
    """Open the set's pairs one after the other.

    Raises:
        InputRefused: a volume is missing or cannot be used.
    """
    share, rest = divmod(test_set.slices, len(test_set.pairs))
    for number, pair in enumerate(working_pairs(folder, test_set.pairs, processing)):
        yield _open(folder, pair, processing, count=share + (number < rest))


def _open(folder: Path, pair: WorkingPair, processing: Processing, *, count: int) -> Case:
    p, thick = pair.parameters, pair.thick_axis
    window = tuple(slice(0, length) for length in pair.condition.shape)
    mask = brain_mask(folder, p.subject, processing)[window]
    normal = plane_normals(thick)[-1]
    request = Request(
        y=pair.condition.astype(np.float32), thick_axis=thick, normal=normal, indices=_spread(mask, normal, count, p)
    )
    files = (low_path(folder, p), *(subject_path(folder, p.subject, kind) for kind in kinds(folder, p)))
    described = [*(sha256_file(path) for path in files), render(processing), repr((thick, normal, request.indices))]
    return Case(
        pair=p,
        request=request,
        reference=request.slices(pair.target[window].astype(np.float32)),
        mask=request.slices(mask),
        identity=hashlib.sha256("\n".join(described).encode()).hexdigest(),
    )


def kinds(folder: Path, pair: PairParameters) -> tuple[str, ...]:
    """Which of the subject's volumes the case is made of: brain and mask, and the head where that is the reference."""
    return tuple(dict.fromkeys(("brain", "mask", kind_of(folder, pair))))


def brain_mask(folder: Path, subject: str, processing: Processing) -> Mask:
    """The brain mask on the working grid."""
    mask, affine = read_volume(subject_path(folder, subject, "mask"))
    grid = WorkingGrid.of_scan(mask.shape, affine, voxel_size=processing.voxel_size)
    return np.asarray(grid.regrid((mask > 0).astype(np.float32)) > 0.5)


def _spread(mask: Mask, normal: int, count: int, pair: PairParameters) -> tuple[int, ...]:
    """Evenly spaced indices among the slices that the scores' rule keeps."""
    kept = np.flatnonzero(np.moveaxis(mask, normal, 0).mean(axis=(1, 2)) >= MIN_COVERAGE)
    if not len(kept):
        raise InputRefused(
            f"{pair.pair}: the brain mask covers {MIN_COVERAGE:.0%} of no slice; expected a brain: look at its mask"
        )
    chosen = kept[np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int))]
    return tuple(int(index) for index in chosen)
