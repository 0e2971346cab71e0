"""The acceptance test of a device: does a bundle give here what it gave where it was made, again and again?"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.device.cold import Opener, Scan, cold_start, open_enhancer
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import missing_extra
from lfmri_runtime.golden import (
    IDENTICAL_DB,
    LARGEST_LPIPS_DIFFERENCE,
    LEAST_PSNR,
    LEAST_SSIM,
    has_ssim,
    measure_parity,
    read_golden,
)
from lfmri_runtime.machine import identity, memory_gib, resident_mib
from lfmri_runtime.metrics import psnr
from lfmri_runtime.sample import LOW_FIELD
from lfmri_runtime.volume import read_scan

SCHEMA = 1
#: Batch sizes that must give one result; the first is what the others are compared with.
BATCHES = (2, 1, 3, 4)
#: Least PSNR between batch sizes, dB: half arithmetic may round in another order, by less than the golden check allows.
LEAST_BATCH_PSNR = 60.0
#: Volumes that are enhanced one after the other, and the share of them that may still fill pools and caches.
VOLUMES = 100
SETTLING = 0.25
#: Largest growth of memory, of the process and of the GPU, MiB a volume: 1 GiB after ten thousand scans (assumed).
LARGEST_GROWTH = 0.1
#: Longest cold start, s, from nothing to the first small volume (assumed: an operator waits no longer).
LONGEST_COLD_START = 60.0
#: Voxels along each axis of the pieces of the sample that are enhanced: small, since a device may be slow.
PIECE = (16, 16, 6)
SIGNATURE = "signed_off"

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure and its limit.

    Attributes:
        name: what was measured.
        unit: of figure and limit.
        figure: None where the values were not finite.
        least: smallest figure that passes; None where there is none.
        most: largest figure that passes; None where there is none.
    """

    name: str
    unit: str
    figure: float | None
    least: float | None = None
    most: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the figure lies within the limits."""
        if self.figure is None:
            return False
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)


def verify(
    bundle: Bundle,
    backend: str,
    precision: str | None,
    *,
    threads: int = 0,
    volumes: int = VOLUMES,
    say: Progress = lambda line: None,
) -> dict[str, Any]:
    """Run the acceptance test of one back end.

    Args:
        bundle: verified.
        backend: one of `backends.BACKENDS`.
        precision: None takes the back end's default.
        threads: of the network's arithmetic on a CPU; 0 takes all cores.
        volumes: that are enhanced for the check of memory.
        say: called with one line as each part begins.

    Returns:
        the signed document, plain values.

    Raises:
        BackendMissing: the back end is not usable, or scikit-image is missing: an acceptance test without SSIM is none.
        BundleRefused: the bundle or an engine must not be loaded.
    """
    if not has_ssim():
        raise missing_extra("evaluate", "scikit-image")
    opener = partial(open_enhancer, bundle.path, backend, precision, threads=threads)
    enhancer = opener()
    step = enhancer.step
    checks: list[Check] = []
    for part in (_golden, _batches, partial(_memory, volumes=volumes), partial(_cold, opener=opener)):
        for check in part(enhancer, say):
            checks.append(check)
    contract = bundle.contract
    document = {
        "schema": SCHEMA,
        "verdict": "passed" if all(check.passed for check in checks) else "failed",
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "bundle": {"name": contract.name, "version": contract.version, "sha256": bundle.sha256},
        "backend": {"name": step.name, "provider": step.provider, "precision": step.precision, "threads": threads},
        "machine": {**identity(step.gpu), "memory_gib": memory_gib()},
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
    }
    step.close()
    return {**document, SIGNATURE: signature(document)}


def signature(document: dict[str, Any]) -> str:
    """SHA-256 of a document without its signature, as JSON with sorted keys and no spaces: it shows later changes.

    It names no person and proves no origin: whoever changes the document can make it again.
    """
    content = {key: value for key, value in document.items() if key != SIGNATURE}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def page(document: dict[str, Any]) -> str:
    """The document as one page of Markdown."""
    machine, backend = document["machine"], document["backend"]
    bundle, cpu = document["bundle"], machine["cpu"]
    lines = [
        f"# lfmri verify: {document['verdict']}",
        "",
        f"- made: {document['made']}",
        f"- bundle: {bundle['name']} {bundle['version']}, sha256 {bundle['sha256']}",
        f"- back end: {backend['name']}, {backend['precision']}, {backend['provider']}",
        f"- CPU: {cpu['name']} ({cpu['architecture']}), {cpu['cores']} cores, {' '.join(cpu['features'])}",
        f"- GPU: {', '.join(machine['gpus']) or 'none'}",
        f"- memory: {machine['memory_gib']} GiB",
        f"- versions: {', '.join(f'{name} {number}' for name, number in machine['versions'].items())}",
        "",
        "| check | figure | limit | |",
        "| --- | --- | --- | --- |",
    ]
    for check in document["checks"]:
        figure = "not finite" if check["figure"] is None else f"{check['figure']:.4g} {check['unit']}".strip()
        sides = (("at least", check["least"]), ("at most", check["most"]))
        limit = ", ".join(f"{word} {value:g}" for word, value in sides if value is not None)
        lines.append(f"| {check['name']} | {figure} | {limit} | {'passed' if check['passed'] else '**failed**'} |")
    return "\n".join([*lines, "", f"Signed off (sha256 of the JSON's content): {document[SIGNATURE]}", ""])


def _golden(enhancer: Enhancer, say: Progress) -> Iterator[Check]:
    say("golden check")
    for row in measure_parity(enhancer.step, read_golden(enhancer.bundle)):
        name = f"against PyTorch, {row.steps} steps: "
        yield Check(name=f"{name}PSNR", unit="dB", figure=row.psnr, least=LEAST_PSNR)
        yield Check(name=f"{name}SSIM", unit="", figure=row.ssim, least=LEAST_SSIM)
        most = LARGEST_LPIPS_DIFFERENCE
        yield Check(name=f"{name}LPIPS difference", unit="", figure=row.lpips_difference, most=most)


def _batches(enhancer: Enhancer, say: Progress) -> Iterator[Check]:
    """The same scan with every batch size, and again with the first."""
    say(f"batches of {', '.join(map(str, BATCHES))}")
    results = []
    for batch in (*BATCHES, BATCHES[0]):
        sized = Enhancer(enhancer.bundle, step=enhancer.step, batch=batch)
        enhanced = sized.enhance(*_piece(0), steps=2)
        results.append(enhanced.mean / np.float32(enhanced.scale))
    for batch, result in zip(BATCHES[1:], results[1:], strict=False):
        ratio = min(psnr(result, results[0]), IDENTICAL_DB)
        yield Check(name=f"batch {batch} against {BATCHES[0]}: PSNR", unit="dB", figure=ratio, least=LEAST_BATCH_PSNR)
    changed = int(np.count_nonzero(results[-1] != results[0]))
    yield Check(name="the same run again", unit="voxels that differ", figure=changed, most=0)


def _memory(enhancer: Enhancer, say: Progress, *, volumes: int) -> Iterator[Check]:
    """The growth of resident memory over the volumes, and of the GPU's where our own calls reach it."""
    say(f"memory over {volumes} volumes")
    readings: dict[str, Callable[[], float]] = {"memory": resident_mib}
    if (gpu := enhancer.step.gpu) is not None:
        readings["GPU memory"] = lambda: -gpu.free_mib()
    used: dict[str, list[float]] = {what: [] for what in readings}
    for number in range(volumes):
        enhancer.enhance(*_piece(number), steps=1, seed=number)
        for what, read in readings.items():
            used[what].append(read())
    for what, figures in used.items():
        name = f"growth of {what} over {volumes} volumes"
        yield Check(name=name, unit="MiB/volume", figure=_growth(figures), most=LARGEST_GROWTH)


def _growth(used: list[float]) -> float:
    """The slope of a memory over the volumes, MiB a volume, as the median over all pairs of them (Theil and Sen).

    An allocator takes memory in pieces: one such jump moves a line of least squares, and is no leak.
    """
    settled = np.array(used[int(SETTLING * len(used)) :])
    first, second = np.triu_indices(len(settled), k=1)
    return float(np.median((settled[second] - settled[first]) / (second - first)))


def _cold(enhancer: Enhancer, say: Progress, *, opener: Opener) -> Iterator[Check]:
    say("cold start")
    start = cold_start(opener, _piece(0))
    seconds = start.open_seconds + start.first_seconds
    yield Check(name="cold start to the first small volume", unit="s", figure=seconds, most=LONGEST_COLD_START)


def _piece(number: int) -> Scan:
    """A piece of the sample scan, another one for every number."""
    scan = read_scan(LOW_FIELD)
    middle = [(whole - part) // 2 for whole, part in zip(scan.data.shape, PIECE, strict=True)]
    origin = (middle[0] + number % 16, middle[1], middle[2])
    data: NDArray[np.float32] = scan.data[tuple(slice(o, o + p) for o, p in zip(origin, PIECE, strict=True))]
    return np.ascontiguousarray(data), scan.affine
