"""One change at a time to a training: `python benchmarks/ablation.py --pairs DIR --out DIR [--steps N]`.

Every run has the same pairs, steps, crops and seed, and one setting changed; "again" is the first run with another
seed, so that a difference can be compared with chance. Prints the last validation of each as a Markdown table: PSNR
(dB) of whole slices at one Euler step, and LPIPS at ten. Runs that are there already are taken over.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfmri_runtime.errors import LfmriError
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.train import train

#: What 0.3.0 was trained with.
USUAL: dict[str, Any] = {"learning_rate": 1e-3, "time_power": 3.0, "time_zero": 0.25, "scale_jitter": 0.05}
CHANGES: dict[str, dict[str, Any]] = {
    "usual": {},
    "again": {"seed": 1},
    "learning rate 3e-4": {"learning_rate": 3e-4},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "no averaging": {"ema_decay": 0.0},
    "averaging 0.99": {"ema_decay": 0.99},
    "uniform times": {"time_power": 0.0, "time_zero": 0.0},
    "no times at 0": {"time_zero": 0.0},
    "all times at 0 (regression)": {"time_zero": 0.999},
    "velocity": {"prediction": "velocity"},
    "source 0.3": {"source_std": 0.3},
    "no scale jitter": {"scale_jitter": 0.0},
    "iqt-cfm": {"preset": "iqt-cfm"},
}
SCORES = ("validation/psnr", "validation/lpips")


def main() -> None:
    """Train what is missing, print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, type=Path, help="with the splits train and validation")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--slices", type=int, default=16, help="of the validation")
    parser.add_argument("--precision", default="bf16-mixed", choices=["bf16-mixed", "32-true"])
    given = parser.parse_args()
    usual = TrainingSettings(
        pairs=str(given.pairs),
        preset="iqt-cfm-edge",
        max_steps=given.steps,
        epoch_steps=given.steps,
        validate_every=1,
        validation_slices=given.slices,
        batch=given.batch,
        crop=given.crop,
        precision=given.precision,
        **USUAL,
    )
    print("| change | PSNR, 1 step | LPIPS, 10 steps |\n| --- | --- | --- |")
    for number, (name, change) in enumerate(CHANGES.items()):
        run = given.out / f"{number:02d}"
        if not (run / "summary.json").is_file():
            shutil.rmtree(run, ignore_errors=True)  # what was stopped begins anew
            train(replace(usual, **change), run)
        metrics = json.loads((run / "summary.json").read_text())["last_metrics"]
        psnr, lpips = (metrics[key] for key in SCORES)
        print(f"| {name} | {psnr:.2f} | {lpips:.3f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except LfmriError as error:
        sys.exit(str(error))
