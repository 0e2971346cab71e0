"""One file in, its outputs out: what every surface that works on files does around the core."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.draws import Progress
from lfmri_runtime.enhancer import Enhanced, Enhancer
from lfmri_runtime.errors import InputRefused, UsageError, missing_extra
from lfmri_runtime.files import check_writable, sha256_file, write_json
from lfmri_runtime.sidecar import describe, sidecar_path
from lfmri_runtime.volume import SUFFIXES, Scan, corner_distance, read_mask, read_scan, without_window, write_scan

#: Two grids whose corners are this close, mm, are the same.
SAME_GRID_MM = 0.05


@dataclass(frozen=True)
class Outputs:
    """Where one scan's results go.

    Attributes:
        scan: the enhanced scan; its sidecar lies beside it.
        uncertainty: the scaled standard deviation over samples; None writes none.
        page: the HTML page; None writes none.
        residual: what of the scan the enhanced one does not explain, on the scan's grid; None writes none.
    """

    scan: Path
    uncertainty: Path | None = None
    page: Path | None = None
    residual: Path | None = None


def check_outputs(jobs: Iterable[tuple[Path, Outputs]], *, kept: Iterable[Path] = ()) -> None:
    """Find out before the work begins whether all of it can be written.

    Args:
        jobs: each scan with its outputs.
        kept: files that are read beside the scans, a mask for example.

    Raises:
        UsageError: two outputs of one name, an output that would replace an input or the JSON file that a converter
            or a BIDS study keeps beside it, or an unknown image suffix.
        BackendMissing: a page is asked for and Pillow is not installed.
        TryAgainLater: a place that cannot be written.
    """
    jobs = list(jobs)
    images = [path for _, outputs in jobs for path in (outputs.scan, outputs.uncertainty, outputs.residual) if path]
    pages = [outputs.page for _, outputs in jobs if outputs.page]
    for path in images:
        if not path.name.lower().endswith(SUFFIXES):
            raise UsageError(f"{path}: unknown kind of image; expected a name that ends in {', '.join(SUFFIXES)}")
    every = [*images, *(sidecar_path(outputs.scan) for _, outputs in jobs), *pages]
    check_apart(every, inputs=[*(scan for scan, _ in jobs), *kept])
    if pages:
        _require_pillow()
    for path in every:
        check_writable(path)


def check_apart(outputs: Iterable[Path], *, inputs: Iterable[Path]) -> None:
    """Make sure that no output replaces an input, the JSON file that lies beside one, or another output.

    Args:
        outputs: files to write.
        inputs: images to read; the JSON file of each may be a sidecar, or what a converter or a BIDS study keeps there.

    Raises:
        UsageError: naming the output.
    """
    inputs = list(inputs)
    beside = [sidecar_path(path) for path in inputs if path.name]  # a folder given as . has no name of its own
    taken = {path.resolve(): "an input" for path in (*inputs, *beside)}
    for path in outputs:
        place = path.resolve()
        if place in taken:
            raise UsageError(f"{path} would replace {taken[place]}; expected a name of its own for every output")
        taken[place] = "another output"


def enhance_file(
    enhancer: Enhancer, path: Path, outputs: Outputs, *, mask: Path | None = None, progress: Progress, **settings: Any
) -> dict[str, Any]:
    """Read a scan, enhance it, write its outputs; the sidecar comes last and says that all is there.

    Args:
        enhancer: opened.
        path: the scan.
        outputs: checked by `check_outputs`.
        mask: on the scan's own grid.
        progress: as `Enhancer.enhance` takes it.
        **settings: of `Enhancer.enhance`.

    Returns:
        the sidecar's content.

    Raises:
        InputRefused: an unusable scan or mask.
        TryAgainLater: an output could not be written.
    """
    started = time.perf_counter()
    scan = read_scan(path)
    digest = sha256_file(path)  # now, since the file may be another one once the scan is enhanced
    inside = None if mask is None else _mask_of(scan, mask)
    read = time.perf_counter() - started
    enhanced = enhancer.enhance(scan.data, scan.affine, mask=inside, progress=progress, **settings)
    document = write_outputs(enhancer.bundle, scan, enhanced, outputs, input_sha256=digest, read=read)
    if outputs.page is not None:
        from lfmri_runtime.showing import show

        show(outputs.page, outputs.scan, scan=path, uncertainty=outputs.uncertainty)
    return document


def write_outputs(
    bundle: Bundle,
    scan: Scan,
    enhanced: Enhanced,
    outputs: Outputs,
    *,
    input_sha256: str,
    read: float,
    details: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Write an enhanced scan, its maps and, last, the sidecar that says that all is there.

    Args:
        bundle: that was used.
        scan: the input.
        enhanced: the result.
        outputs: checked by `check_outputs`; the page is not written here.
        input_sha256: of the input file.
        read: seconds that reading took.
        details: further keys of the sidecar.

    Returns:
        the sidecar's content.

    Raises:
        TryAgainLater: an output could not be written.
    """
    started = time.perf_counter()
    sidecar_path(outputs.scan).unlink(missing_ok=True)  # an earlier run's would lie about what is half written now
    write_scan(outputs.scan, enhanced.mean, enhanced.affine, scan)
    unshown = without_window(scan)
    if outputs.uncertainty is not None and enhanced.std is not None:
        write_scan(outputs.uncertainty, enhanced.std, enhanced.affine, unshown)
    notes: tuple[str, ...] = ()
    if outputs.residual is not None:
        if enhanced.residual is None:
            outputs.residual.unlink(missing_ok=True)  # an earlier run's is not of this scan
            notes = ("no residual is written: too little head, or no noise, to compare the scan with",)
        else:
            write_scan(outputs.residual, enhanced.residual, scan.affine, unshown)
    seconds = {"read": round(read, 4), "write": round(time.perf_counter() - started, 4)}
    document = {**describe(bundle, scan, enhanced, input_sha256=input_sha256, seconds=seconds), **details}
    document["notes"] += notes
    write_json(sidecar_path(outputs.scan), document)
    return document


def _mask_of(scan: Scan, path: Path) -> NDArray[np.bool_]:
    mask = read_mask(path)
    shape = scan.data.shape
    if mask.data.shape != shape or corner_distance(mask.affine, scan.affine, shape) > SAME_GRID_MM:
        raise InputRefused(
            f"{path}: a mask of {mask.data.shape} voxels on a grid of its own; expected the scan's grid "
            f"({shape}): resample it onto the scan"
        )
    inside: NDArray[np.bool_] = mask.data > 0.5
    return inside


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401 - only whether it is there
    except ImportError:
        raise missing_extra("evaluate", "Pillow") from None
