"""What the check of consistency says of scans as they are enhanced, and of those with a sphere too much or too little.

OUT/results/<set>/consistency/<pair>.npz    the number for the enhanced scan and for each altered one
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.consistency import THRESHOLD
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.page.article import Section, Table
from lfmri_trainer.baselines.method import Progress
from lfmri_trainer.benchmark.cases import brain_mask
from lfmri_trainer.benchmark.enhanced import CODE, EnhancedScan
from lfmri_trainer.benchmark.results import code_hash, keep, kept
from lfmri_trainer.benchmark.run import RESULTS, Scan, SetResults, spread
from lfmri_trainer.benchmark.tables import csv_text

Float32Array = NDArray[np.float32]

#: Scans of a set, each enhanced whole: minutes on two cores.
SCANS = 2
#: Diameters of the spheres, mm, and their strengths as a share of white matter.
DIAMETERS = (6.0, 8.0, 10.0)
STRENGTHS = (0.2, 0.4)
#: Spheres of each kind in each scan, one at a time; they are added and taken away in turn.
SPHERES = 8
#: The number's place may lie this far outside the sphere, mm: half of a neighbourhood and of a slice's spacing.
NEAR_MM = 4.0
_CODE = code_hash(__name__, *CODE)


@dataclass(frozen=True, eq=False, kw_only=True)
class Checked:
    """The check's numbers for one scan.

    Attributes:
        set_name: InD or OOD.
        pair: its name.
        clean: for the scan as it was enhanced.
        altered: for the altered ones, (DIAMETERS, STRENGTHS, SPHERES).
        near: whether the number's place is the sphere's, likewise.
    """

    set_name: str
    pair: str
    clean: float
    altered: NDArray[np.float64]
    near: NDArray[np.bool_]


def measure(
    pairs: Path,
    out: Path,
    bundle: Bundle,
    every: Sequence[SetResults],
    *,
    scans: int,
    threads: int,
    progress: Progress,
) -> list[Checked]:
    """Enhance and check scans of every set at one step, or take over what an earlier call left in `out`.

    Args:
        pairs: the folder.
        out: of the benchmark.
        bundle: the proposed model.
        every: the scored sets.
        scans: of each, at most.
        threads: 0 takes all cores.
        progress: called with (scans done, scans in all).

    Raises:
        InputRefused: a result that cannot be read, or a scan that cannot be checked.
    """
    enhancer = Enhancer(bundle, step=open_backend(bundle, threads=threads))
    chosen = [(results.test_set.name, scan) for results in every for scan in spread(results.scans, scans)]
    found = []
    for done, (name, scan) in enumerate(chosen, start=1):
        path = out / RESULTS / name / "consistency" / f"{scan.pair.pair}.npz"
        found.append(_kept_or_made(path, pairs, enhancer, name, scan))
        progress(done, len(chosen))
    return found


def with_sphere(volume: Float32Array, centre: NDArray[np.int_], *, diameter: float, change: float) -> Float32Array:
    """A volume with a sphere of `diameter` voxels changed, its edge as wide as a voxel."""
    index = np.meshgrid(*map(np.arange, volume.shape), indexing="ij", sparse=True)
    away = np.sqrt(sum((i - c) ** 2 for i, c in zip(index, centre, strict=True)))
    changed: Float32Array = volume + np.float32(change) * np.clip(diameter / 2 + 0.5 - away, 0, 1).astype(np.float32)
    return changed


def consistency_section(checked: Sequence[Checked]) -> Iterator[Section]:
    """One table of all sets; nothing where none was checked."""
    if not checked:
        return
    text = (
        "The number of `lfmri enhance` at one step and the scan's own --slice-thickness, the largest neighbourhood "
        f"mean of the residual in units of its usual spread; above {THRESHOLD:g} it notes where. Found: "
        f"the share of spheres, added to or taken from the enhanced scan at {SPHERES} random places in each brain, for "
        "which the number is above that and its place is the sphere's. Strengths are shares of white matter's "
        "intensity."
    )
    kinds = list(product(DIAMETERS, STRENGTHS))
    rows = []
    for name in dict.fromkeys(c.set_name for c in checked):
        own = [c for c in checked if c.set_name == name]
        flags = np.stack([(c.altered > THRESHOLD) & c.near for c in own])
        shares = flags.mean(axis=(0, 3)).ravel()
        clean = ", ".join(f"{c.clean:.1f}" for c in own)
        rows.append(((name, False), (clean, False), *((f"{share:.0%}", False) for share in shares)))
    head = ("set", "as enhanced", *(f"{size:g} mm, {strength:.0%}: found" for size, strength in kinds))
    yield Section(heading="Consistency", paragraphs=(text,), table=Table(head=head, rows=tuple(rows)))


def consistency_csv(checked: Sequence[Checked]) -> str:
    """One line a scan as enhanced, and one a sphere."""
    lines: list[list[object]] = []
    for c in checked:
        lines.append([c.set_name, c.pair, "", "", "", repr(c.clean), ""])
        for (i, size), (j, strength), n in product(enumerate(DIAMETERS), enumerate(STRENGTHS), range(SPHERES)):
            sphere = [size, strength * _sign(n), n]
            lines.append([c.set_name, c.pair, *sphere, repr(float(c.altered[i, j, n])), int(c.near[i, j, n])])
    return csv_text(["set", "pair", "diameter_mm", "change", "sphere", "number", "near"], lines)


def _sign(number: int) -> int:
    return 1 if number % 2 else -1


def _kept_or_made(path: Path, pairs: Path, enhancer: Enhancer, name: str, scan: Scan) -> Checked:
    about = {
        "bundle": enhancer.bundle.sha256,
        "scan": scan.identity,
        "code": _CODE,
        "spheres": repr((DIAMETERS, STRENGTHS, SPHERES, NEAR_MM)),
    }
    found = kept(path, about, "clean", "altered", "near")
    if found is not None:
        clean, altered, near = found[0]
        return Checked(set_name=name, pair=scan.pair.pair, clean=float(clean), altered=altered, near=near)
    made = _check(pairs, enhancer, name, scan)
    keep(path, {"clean": np.array(made.clean), "altered": made.altered, "near": made.near}, about)
    return made


def _check(pairs: Path, enhancer: Enhancer, name: str, scan: Scan) -> Checked:
    pair, processing = scan.pair, enhancer.bundle.contract.processing
    opened = EnhancedScan.of(pairs, enhancer, pair)
    brain = brain_mask(pairs, pair.subject, processing)[tuple(map(slice, opened.x_1.shape))]
    # Where there is tissue, so that a sphere can be taken away as well as added.
    inside = np.argwhere(brain & (opened.x_1 > max(STRENGTHS) * processing.high_field.wm))
    rng = np.random.default_rng(pair.seed)
    shape = (len(DIAMETERS), len(STRENGTHS), SPHERES)
    altered, near = np.empty(shape), np.empty(shape, dtype=np.bool_)
    for (i, size), (j, strength), n in product(enumerate(DIAMETERS), enumerate(STRENGTHS), range(SPHERES)):
        centre = inside[rng.integers(len(inside))]
        change = strength * _sign(n) * processing.high_field.wm
        volume = with_sphere(opened.x_1, centre, diameter=size / processing.voxel_size, change=change)
        found = opened.check(volume.clip(0, processing.high_field.limit), thickness=opened.thickness)
        there = (opened.place.affine @ [*centre, 1.0])[:3]
        altered[i, j, n] = found.largest
        near[i, j, n] = np.linalg.norm(np.array(found.place) - there) <= size / 2 + NEAR_MM
    clean = opened.check(opened.x_1, thickness=opened.thickness).largest
    return Checked(set_name=name, pair=pair.pair, clean=clean, altered=altered, near=near)
