"""Scores of a bundle on test pairs, by number of Euler steps: `python benchmarks/scores.py --pairs PAIRS --out FILE`.

Takes evenly spaced slices of one plane that contains the thick axis, from every pair of the split `test`, and writes a
Markdown table. `lfmri enhance` also averages the other such plane, which these scores leave out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.enhancer import BATCH
from lfmri_runtime.evaluation import COLUMNS, PLANES, RULE, Evaluation, evaluate, summary_cell
from lfmri_runtime.files import write_text
from lfmri_runtime.intensity import HighFieldStandard
from lfmri_runtime.lpips import Lpips
from lfmri_runtime.sampler import euler, uniform_time_grid
from lfmri_runtime.slices import batches, noise_volume, pad, plane_normals, slices_of
from lfmri_trainer.simulation.pairs import read_pairs, read_volume, subject_path
from lfmri_trainer.simulation.presets import PRESETS
from lfmri_trainer.working import WorkingPair, working_pairs

Float32Array = NDArray[np.float32]

#: The network's input scaled as the runtime scales it, and by its own tissue means.
INTERPOLATIONS = ("interpolation", "matched interpolation")


def stacks(
    pair: WorkingPair, mask: NDArray[np.bool_], count: int
) -> tuple[Float32Array, Float32Array, NDArray[np.bool_]]:
    """Condition, target and mask of evenly spaced slices between the quarters of the brain."""
    normal = plane_normals(pair.thick_axis)[-1]
    window = tuple(slice(0, n) for n in pair.condition.shape)
    y, x_1, inside = (
        slices_of(np.asarray(volume[window]), normal=normal, thick_axis=pair.thick_axis)
        for volume in (pair.condition, pair.target, mask)
    )
    filled = np.flatnonzero(inside.any(axis=(1, 2)))
    chosen = np.linspace(*np.quantile(filled, (0.2, 0.8)), count).astype(int)
    return y[chosen].astype(np.float32), x_1[chosen].astype(np.float32), inside[chosen]


def score_pair(
    pair: WorkingPair,
    mask: NDArray[np.bool_],
    *,
    steps: list[int],
    count: int,
    step: Step,
    standard: HighFieldStandard,
) -> dict[str, Evaluation]:
    """Scores of interpolation, scaled in two ways, and of every number of steps."""
    y, x_1, inside = stacks(pair, mask, count)
    rows, columns = y.shape[1:]
    padded = np.stack([pad(image, 16) for image in y])[:, None]
    x_0 = noise_volume(padded.shape, seed=0, sample=0)
    lpips = Lpips()
    matched = standard.apply(y, inside)
    figures = {
        name: evaluate(volume, x_1, axis=0, mask=inside, lpips=lpips)
        for name, volume in zip(INTERPOLATIONS, (y, matched), strict=True)
    }
    for number in steps:
        parts = [euler(step, x_0[p], padded[p], uniform_time_grid(number)) for p in batches(len(y), BATCH)]
        images = np.clip(np.concatenate(parts)[:, 0, :rows, :columns], 0, None)
        figures[f"{number} step{'s' if number > 1 else ''}"] = evaluate(images, x_1, axis=0, mask=inside, lpips=lpips)
    return figures


def table(title: str, figures: dict[str, Evaluation]) -> list[str]:
    """One pair as Markdown lines."""
    head = " | ".join(column.label for column in COLUMNS)
    lines = [f"## {title}", "", f"| | {head} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for name, evaluation in figures.items():
        cells = " | ".join(summary_cell(column, evaluation.summary[column.key]) for column in COLUMNS)
        lines.append(f"| {name} | {cells} |")
    return [*lines, ""]


def gains(figures: dict[str, Evaluation]) -> list[str]:
    """What every number of steps gains over interpolation inside the mask, as Markdown lines."""
    means = {
        name: [evaluation.summary[key].mean for key in ("mask_psnr_db", "mask_ssim", "mask_lpips")]
        for name, evaluation in figures.items()
    }
    plain, matched = (means.pop(name) for name in INTERPOLATIONS)
    lines = []
    for name, (psnr, ssim, lpips) in means.items():
        gained = "; ".join(
            f"{psnr - base[0]:+.2f} dB, SSIM {ssim - base[1]:+.3f}, LPIPS times {lpips / base[2]:.2f}"
            for base in (plain, matched)
        )
        lines.append(f"- {name}: {gained}")
    return [f"Over {' and over '.join(INTERPOLATIONS)}, inside the mask:", "", *lines, ""]


def title_of(pair: WorkingPair) -> str:
    """Subject, draw and plane of a pair."""
    p = pair.parameters
    kind = "in distribution" if PRESETS[p.preset].in_distribution else "out of distribution"
    return (
        f"{p.subject}, {p.preset} ({kind}): {PLANES[plane_normals(pair.thick_axis)[-1]]} slices, thick axis "
        f"{p.thick_axis}, SNR {p.snr_wm:.1f} in white and {p.snr_gm:.1f} in grey matter, Mahalanobis distance "
        f"{p.distance:.2f}"
    )


def main() -> None:
    """Score every test pair and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs that `lfmri simulate` made")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file")
    parser.add_argument("--bundle", type=Path, help="bundle; the built-in one by default")
    parser.add_argument("--slices", type=int, default=24, help="slices of each pair")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 5, 10], help="numbers of Euler steps")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    step = open_backend(bundle)
    rows = [row for row in read_pairs(options.pairs) if row.split == "test"]
    lines = [
        f"# Scores of {bundle.contract.name} {bundle.contract.version}",
        "",
        f"Trained on {', '.join(bundle.contract.training['training_subjects'])}; the subjects below were not seen. The",
        "reference is on the model's standard scale, data range 1. Interpolation is the network's own input: the scan",
        "on the working grid by cubic splines, divided by the one number that brings its foreground to a brain's mean",
        "on the standard scale. Matched: its own grey and white matter means in the mask come to the standard ones",
        "instead. Nothing is fitted to the reference.",
        f"{options.slices} slices of one plane that contains the thick axis; `lfmri enhance` also averages the other.",
        RULE,
        "",
        f"Made by `python benchmarks/scores.py --slices {options.slices} --pairs PAIRS --out FILE`.",
        "",
    ]
    for pair in working_pairs(options.pairs, rows, bundle.contract.processing):
        mask, _ = read_volume(subject_path(options.pairs, pair.parameters.subject, "mask"))
        figures = score_pair(
            pair,
            mask > 0,
            steps=options.steps,
            count=options.slices,
            step=step,
            standard=bundle.contract.processing.high_field,
        )
        text = [*table(title_of(pair), figures), *gains(figures)]
        sys.stdout.write("\n".join(text) + "\n")
        lines += text
    write_text(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
