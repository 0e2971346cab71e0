"""What the check of consistency says of scans as they are enhanced: how often it would warn for nothing.

OUT/results/<set>/unaltered/<pair>.npz    the number at the slices' own thickness, and at the slice spacing
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.consistency import THRESHOLD
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.page.article import Section, Table
from lfmri_trainer.baselines.method import Progress
from lfmri_trainer.benchmark.enhanced import CODE, EnhancedScan
from lfmri_trainer.benchmark.results import code_hash, keep, kept
from lfmri_trainer.benchmark.run import RESULTS, Scan, SetResults, spread

#: Scans of a set that are looked at, evenly spread over its list: a minute each on two cores.
MOST_SCANS = 4
_CODE = code_hash(__name__, *CODE)


@dataclass(frozen=True, kw_only=True)
class Unaltered:
    """The check's numbers for one scan as it was enhanced at one step.

    Attributes:
        set_name: InD or OOD.
        pair: its name.
        known: the number with the thickness that the slices were simulated with.
        assumed: the number with the slice spacing for it, as `lfmri enhance` takes where nothing is said.
    """

    set_name: str
    pair: str
    known: float
    assumed: float


def measure(
    pairs: Path, out: Path, bundle: Bundle, every: Sequence[SetResults], *, threads: int, progress: Progress
) -> list[Unaltered]:
    """Enhance and check scans of every set, or take over what an earlier call left in `out`.

    Raises:
        InputRefused: a result that cannot be read, or a scan that cannot be checked.
    """
    enhancer = Enhancer(bundle, step=open_backend(bundle, threads=threads))
    chosen = [(results.test_set.name, scan) for results in every for scan in spread(results.scans, MOST_SCANS)]
    found = []
    for done, (name, scan) in enumerate(chosen, start=1):
        path = out / RESULTS / name / "unaltered" / f"{scan.pair.pair}.npz"
        known, assumed = _kept_or_made(path, pairs, enhancer, scan)
        found.append(Unaltered(set_name=name, pair=scan.pair.pair, known=known, assumed=assumed))
        progress(done, len(chosen))
    return found


def _kept_or_made(path: Path, pairs: Path, enhancer: Enhancer, scan: Scan) -> tuple[float, float]:
    about = {"bundle": enhancer.bundle.sha256, "scan": scan.identity, "code": _CODE}
    found = kept(path, about, "known", "assumed")
    if found is not None:
        known, assumed = found[0]
        return float(known), float(assumed)
    opened = EnhancedScan.of(pairs, enhancer, scan.pair)
    numbers = [opened.check(opened.x_1, thickness=thickness).largest for thickness in (opened.thickness, None)]
    keep(path, {"known": np.array(numbers[0]), "assumed": np.array(numbers[1])}, about)
    return numbers[0], numbers[1]


def unaltered_section(found: Sequence[Unaltered]) -> Iterator[Section]:
    """One table; nothing where no scan was looked at."""
    if not found:
        return
    known, assumed = sum(u.known > THRESHOLD for u in found), sum(u.assumed > THRESHOLD for u in found)
    text = (
        "The check's number for scans of several people as they are enhanced at one step; `lfmri enhance` would note a "
        f"number above {THRESHOLD:g}: of these {len(found)} scans {known} with the slices' own thickness and "
        f"{assumed} with the slice spacing in its place, as is assumed without --slice-thickness."
    )
    rows = tuple(
        tuple((cell, False) for cell in (u.set_name, u.pair, f"{u.known:.1f}", f"{u.assumed:.1f}")) for u in found
    )
    head = ("set", "scan", "number, own thickness", "number, slice spacing")
    yield Section(
        heading="Consistency of scans as they are enhanced", paragraphs=(text,), table=Table(head=head, rows=rows)
    )
