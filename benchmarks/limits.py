"""What stands between a scan and its reference: resolution, contrast, noise. Scores inside the mask, by test pair.

    python benchmarks/limits.py --pairs DIR [--slices N]

Each cell is PSNR (dB) / SSIM / LPIPS. What lies outside the mask is taken away first, so SSIM, which sees across its
edge, is a little higher than `lfmri benchmark` has it. Every column but the first is helped by the truth, so none is a
method:

scan         cubic interpolation on the working grid, as every method gets it
best line    a * scan + b with the a and b that fit the reference best
best map     the best function of a voxel's value alone (means of the reference in 100 quantiles of the scan)
resolution   the reference itself through the pair's slice profile and spacing: high-field contrast, no noise
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.contract import Processing
from lfmri_runtime.errors import LfmriError
from lfmri_runtime.evaluation.scores import evaluate
from lfmri_runtime.geometry import AXES, WorkingGrid
from lfmri_runtime.lpips import Lpips
from lfmri_trainer.benchmark.cases import Case, choose_sets, open_cases
from lfmri_trainer.simulation.pairs import read_pairs, read_volume, subject_path
from lfmri_trainer.simulation.scanner import thick_slices

Values = NDArray[np.float64]
QUANTILES = 100
COLUMNS = ("scan", "best line", "best map", "resolution")


def main() -> None:
    """Print one line a pair and the means of each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, type=Path, help="folder of pairs that `lfmri simulate` made")
    parser.add_argument("--presets", nargs="+", default=["siqt-k4", "siqt-k4-ood"])
    parser.add_argument("--slices", type=int, default=10, help="of each pair")
    given = parser.parse_args()
    processing = open_bundle().contract.processing
    rows = read_pairs(given.pairs)
    lpips = Lpips()
    print(f"| pair | {' | '.join(COLUMNS)} |\n|{' --- |' * (1 + len(COLUMNS))}")
    for preset in given.presets:
        count = sum(row.split == "test" and row.preset == preset for row in rows)
        (chosen,) = choose_sets(rows, [(preset, preset, given.slices * count)])
        found = []
        for case in open_cases(given.pairs, chosen, processing):
            columns = limits(case, resolved(given.pairs, case, processing))
            found.append([scores(case, values, lpips) for values in columns])
            print(line(case.pair.pair, found[-1]), flush=True)
        print(line(f"mean of {preset}", np.mean(found, axis=0)), flush=True)


def limits(case: Case, sharp: Values) -> list[Values]:
    """The columns at the voxels in the mask of the case's slices."""
    y, x_1 = (image[case.mask].astype(np.float64) for image in (case.request.slices(case.request.y), case.reference))
    best = np.polynomial.Polynomial.fit(y, x_1, 1)(y)
    bins = np.digitize(y, np.quantile(y, np.linspace(0, 1, QUANTILES + 1))[1:-1])
    means = np.bincount(bins, x_1, QUANTILES) / np.maximum(np.bincount(bins, minlength=QUANTILES), 1)
    return [y, best, means[bins], sharp]


def scores(case: Case, values: Values, lpips: Lpips) -> list[float]:
    """Means over the slices of the scores inside the mask, for an image that is 0 outside it."""
    image = np.zeros_like(case.reference)
    image[case.mask] = values
    summary = evaluate(image, case.reference, axis=0, mask=case.mask, lpips=lpips).summary
    return [summary[key].mean for key in ("mask_psnr_db", "mask_ssim", "mask_lpips")]


def line(name: str, columns: Any) -> str:
    """A row of the table."""
    cells = (f"{psnr:.2f} / {ssim:.3f} / {lpips:.3f}" for psnr, ssim, lpips in columns)
    return f"| {name} | {' | '.join(cells)} |"


def resolved(pairs: Path, case: Case, processing: Processing) -> Values:
    """The reference's brain on the standard scale, through the scanner's slices and back, at the mask's voxels."""
    pair = case.pair
    brain, affine = read_volume(subject_path(pairs, pair.subject, "brain"))
    mask, _ = read_volume(subject_path(pairs, pair.subject, "mask"))
    axis = AXES.index(pair.thick_axis)
    standard = processing.high_field.apply(brain, mask > 0)
    thick = thick_slices(standard, axis=axis, spacing=pair.spacing, thickness=pair.thickness)
    affine = affine.copy()
    affine[:3, axis] *= pair.spacing
    grid = WorkingGrid.of_scan(thick.shape, affine, voxel_size=processing.voxel_size)
    found = case.request.slices(grid.regrid(thick))[case.mask]
    return found.clip(0, processing.high_field.limit).astype(np.float64)


if __name__ == "__main__":
    try:
        main()
    except LfmriError as error:
        sys.exit(f"limits.py: {error}")
