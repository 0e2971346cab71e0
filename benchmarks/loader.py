"""Does the loader keep up with training? Samples per second of each alone, in turns, with one run's settings.

    python benchmarks/loader.py --pairs DIR [--preset NAME] [--workers N]

Exit code 1 where the loader is less than three times as fast as the training step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lfmri_runtime.errors import LfmriError
from lfmri_trainer.dataset import Sample
from lfmri_trainer.loaders import PairsData
from lfmri_trainer.module import FlowModule
from lfmri_trainer.network.presets import PRESETS
from lfmri_trainer.settings import TrainingSettings

#: Least ratio of the two rates: then loading between the steps costs at most a quarter of the time.
LEAST_RATIO = 3.0
#: Steps of an epoch that no turn reaches the end of.
ENDLESS = 10_000_000


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="folder of pairs that `lfmri simulate` made")
    parser.add_argument("--preset", default="iqt-cfm", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--precision", default="bf16-mixed", choices=("bf16-mixed", "32-true"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5, help="turns of loader and training step")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a turn")
    given = parser.parse_args()
    settings = TrainingSettings(
        pairs=str(Path(given.pairs)),
        preset=given.preset,
        batch=given.batch,
        crop=given.crop,
        precision=given.precision,
        workers=given.workers,
        max_steps=ENDLESS,
        epoch_steps=ENDLESS,
    )
    settings.check()
    batches = iter(PairsData(settings).train_dataloader())
    kept = next(batches)
    step = training_step(settings, kept)
    step()  # warm up both
    next(batches)
    loader_rates, step_rates = [], []
    for _ in range(given.rounds):
        loader_rates.append(rate(lambda: next(batches), settings.batch, given.seconds))
        step_rates.append(rate(step, settings.batch, given.seconds))
    loader, training = statistics.median(loader_rates), statistics.median(step_rates)
    ratio = loader / training
    print(
        f"{given.preset}, batch {given.batch} of {given.crop}x{given.crop}, {given.precision}, {given.workers} workers"
    )
    print(f"loader alone         {loader:9.1f} samples/s  ({min(loader_rates):.1f} to {max(loader_rates):.1f})")
    print(f"training step alone  {training:9.1f} samples/s  ({min(step_rates):.1f} to {max(step_rates):.1f})")
    print(f"ratio                {ratio:9.1f}  (at least {LEAST_RATIO:g}: {'yes' if ratio >= LEAST_RATIO else 'NO'})")
    return 0 if ratio >= LEAST_RATIO else 1


def training_step(settings: TrainingSettings, batch: Sample) -> Callable[[], object]:
    """One optimiser step on a batch that is already there: forward, backward, clipping, Adam."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = FlowModule(settings).to(device)
    module.log = lambda *_, **__: None  # type: ignore[method-assign] # there is no trainer that would take it
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    optimizer = torch.optim.Adam(
        module.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), settings.gradient_clip)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def rate(work: Callable[[], object], samples: int, seconds: float) -> float:
    """Samples per second, repeating for at least that long."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or count == 0:
        work()
        count += samples
    return count / elapsed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LfmriError as error:
        sys.exit(f"loader.py: {error}")
