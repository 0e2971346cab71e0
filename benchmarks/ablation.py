"""One change at a time to a training: `python benchmarks/ablation.py --pairs DIR --out DIR [--steps N]`.

Every run has the same steps, crops and seed, and one thing changed; "again" is the first run with another seed, so that
a difference can be compared with chance. Prints the last validation of each as a Markdown table: PSNR (dB) of whole
slices at one Euler step, and LPIPS at ten; then PSNR of as many slices of each preset in the validation, since what
helps on noisier draws may cost on others. Runs that are there already are taken over; `--only` names those to make.

With `--initial RUN` every run goes on from that run's weights, which takes chance down by far; the changes that these
weights cannot take on (another network, another reading of its output) are left out, and so are those that would leave
the pairs as they are.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfmri_runtime.errors import InputRefused, LfmriError
from lfmri_runtime.metrics import psnr
from lfmri_trainer.dataset import SliceDataset
from lfmri_trainer.flow import sample
from lfmri_trainer.network.presets import build_network
from lfmri_trainer.settings import CONFIGURATION, TrainingSettings
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import TABLE, read_pairs, write_pairs
from lfmri_trainer.train import train
from lfmri_trainer.weights import load_weights, read_processing
from lfmri_trainer.working import working_pairs

#: What the changes are made to.
USUAL: dict[str, Any] = {"source_std": 0.3, "time_zero": 0.25, "time_weight": 1.0, "scale_jitter": 0.05}
#: All times at 0, where x_t tells nothing: plain regression.
REGRESSION: dict[str, Any] = {"time_zero": 0.999}
#: Changed settings; `rate` is a factor of the learning rate, `presets` are those that are trained on, `warm_up` is the
#: share of the steps that is regression.
CHANGES: dict[str, dict[str, Any]] = {
    "usual": {},
    "again": {"seed": 1},
    "as it starts, source 1": {"max_steps": 1, "epoch_steps": 1, "rate": 1e-3, "source_std": 1.0},
    "loss not weighted by time": {"time_weight": 0.0},
    "loss of x_1": {"time_weight": 2.0},
    "no times at 0": {"time_zero": 0.0},
    "half of the times at 0": {"time_zero": 0.5},
    "times with density (1 - t)^3": {"time_power": 3.0},
    "source 1": {"source_std": 1.0},
    "source 0.1": {"source_std": 0.1},
    "regression": REGRESSION,
    "half of the steps regression, then flow": {"warm_up": 0.5},
    "a third of the rate": {"rate": 1 / 3},
    "three times the rate": {"rate": 3.0},
    "no averaging": {"ema_decay": 0.0},
    "averaging 0.99": {"ema_decay": 0.99},
    "air weighs 0.1": {"air_weight": 0.1},
    "no scale jitter": {"scale_jitter": 0.0},
    "no siqt-k4-noisy": {"presets": ("siqt-k4", "siqt-k8", "ultra-low-field")},
    "no noisier draws": {"presets": ("siqt-k4", "siqt-k8")},
    "noisier draws alone": {"presets": ("siqt-k4-noisy", "ultra-low-field")},
    "velocity": {"prediction": "velocity"},
    "the other network": {"preset": "iqt-cfm"},
}
#: What weights that are there already cannot take on.
OF_FRESH_WEIGHTS = {"prediction", "preset"}
SCORES = ("validation/psnr", "validation/lpips")


def main() -> None:
    """Train what is missing, print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, type=Path, help="with the splits train and validation")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--initial", type=Path, help="run whose weights, and network, all start from")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--slices", type=int, default=16, help="of the validation")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--precision", default="bf16-mixed", choices=["bf16-mixed", "32-true"])
    given = parser.parse_args()
    usual = TrainingSettings(
        pairs=str(given.pairs),
        preset=TrainingSettings.load(given.initial / CONFIGURATION).preset if given.initial else "iqt-cfm-edge",
        initial=str(given.initial or ""),
        learning_rate=given.learning_rate,
        max_steps=given.steps,
        epoch_steps=given.steps,
        validate_every=1,
        validation_slices=given.slices,
        batch=given.batch,
        crop=given.crop,
        workers=given.workers,
        precision=given.precision,
        **USUAL,
    )
    held_out = [row for row in read_pairs(given.pairs) if row.split == "validation"]
    if not held_out:
        raise InputRefused(f"{given.pairs}: no pair has the split validation; expected some: hold subjects out")
    presets = sorted({row.preset for row in held_out})
    titles = ["change", "PSNR, 1 step", "LPIPS, 10 steps", *(f"PSNR, {preset}" for preset in presets)]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for name, change in CHANGES.items():
        foreign = given.initial and OF_FRESH_WEIGHTS & change.keys()
        if name not in given.only or foreign or not changes_pairs(given.pairs, change):
            continue
        run = given.out / name.replace(" ", "-")
        if not (run / "summary.json").is_file():
            shutil.rmtree(run, ignore_errors=True)  # what was stopped begins anew
            train_changed(usual, change, run)
        metrics = json.loads((run / "summary.json").read_text())["last_metrics"]
        fidelity, lpips = (metrics[key] for key in SCORES)
        of_presets = [psnr_of(run, [row for row in held_out if row.preset == preset]) for preset in presets]
        scores = [f"{fidelity:.2f}", f"{lpips:.3f}", *(f"{value:.2f}" for value in of_presets)]
        print(f"| {' | '.join([name, *scores])} |", flush=True)


def train_changed(usual: TrainingSettings, change: dict[str, Any], run: Path) -> None:
    """Train with a change; a warm-up is a run of its own, whose steps are taken off.

    The run after it begins anew: its own cosine and averages, and the crops of the first steps once more.
    """
    presets, warm_up = change.get("presets"), change.get("warm_up", 0.0)
    own = {name: value for name, value in change.items() if name not in ("presets", "warm_up", "rate")}
    settings = replace(usual, **own, learning_rate=usual.learning_rate * change.get("rate", 1.0))
    if presets:
        chosen = pairs_of(Path(usual.pairs), presets, run.with_name(f"{run.name}-pairs"))
        settings = replace(settings, pairs=str(chosen))
    if warm_up:
        first, steps = run.with_name(f"{run.name}-warm-up"), round(warm_up * usual.max_steps)
        shutil.rmtree(first, ignore_errors=True)
        train(replace(settings, max_steps=steps, epoch_steps=steps, validation_slices=0, **REGRESSION), first)
        rest = usual.max_steps - steps
        settings = replace(settings, initial=str(first), max_steps=rest, epoch_steps=rest)
    train(settings, run)


def psnr_of(run: Path, rows: Sequence[PairParameters]) -> float:
    """PSNR (dB) of a run's averaged weights at one Euler step, the mean over whole slices of these pairs."""
    settings, processing = TrainingSettings.load(run / CONFIGURATION), read_processing(run)
    network = build_network(settings.preset).eval()
    load_weights(network, run)
    slices = SliceDataset(
        working_pairs(Path(settings.pairs), rows, processing),
        count=settings.validation_slices,
        multiple=processing.multiple,
        source_std=settings.source_std,
        seed=settings.seed,
    )
    values = []
    for number in range(len(slices)):
        x_0, x_1, y = (slices[number][name][None] for name in ("x_0", "x_1", "y"))
        found = sample(network, x_0, y, steps=1, prediction=settings.prediction)
        values.append(psnr(found.numpy(), x_1.numpy()))
    return sum(values) / len(values)


def changes_pairs(pairs: Path, change: dict[str, Any]) -> bool:
    """Whether a change of the presets leaves out some of the training pairs and not all; true of every other change."""
    if "presets" not in change:
        return True
    left = [row.preset in change["presets"] for row in read_pairs(pairs) if row.split == "train"]
    return any(left) and not all(left)


def pairs_of(pairs: Path, presets: Sequence[str], folder: Path) -> Path:
    """A folder of the same pairs, but for training pairs of other presets."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in pairs.iterdir():
        if entry.name != TABLE and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry.resolve())
    write_pairs(folder, [row for row in read_pairs(pairs) if row.split != "train" or row.preset in presets])
    return folder


if __name__ == "__main__":
    try:
        main()
    except LfmriError as error:
        sys.exit(str(error))
