"""What a run does beside its steps: it ends, leaves weights, a summary and checkpoints, and shows how far it is."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.plugins import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lfmri_runtime.files import atomic_write, write_json
from lfmri_trainer.loaders import PairsData
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.weights import SUMMARY, WEIGHTS, Learned


class LastStep(Callback):
    """Stops after the last step, also in the middle of an epoch.

    Trainer(max_steps=...) would do the same, but a run with it does not take up a checkpoint where it was left:
    Lightning 2.6 then counts a finished epoch as unfinished and skips or repeats batches of the next one.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """The epoch's end that follows leaves a checkpoint as every epoch's end does."""
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class RunRecorder(Callback):
    """Writes the averaged weights and a summary beside every checkpoint; must stand after the averaging callback."""

    def __init__(self, run: Path, settings: TrainingSettings, data: PairsData, before: Learned) -> None:
        self.run = run
        self.settings = settings
        self.data = data
        self.before = before

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The averaging callback has put the averaged weights under state_dict by now."""
        if not trainer.is_global_zero:
            return
        prefix = "network."
        weights = {
            name.removeprefix(prefix): value.float().cpu().numpy()
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        with atomic_write(self.run / WEIGHTS) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **weights)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        write_json(self.run / SUMMARY, self._summary(int(trainer.global_step), metrics))

    def _summary(self, steps: int, metrics: dict[str, float]) -> dict[str, Any]:
        pairs = self.data.train_pairs
        return {
            "steps": steps,
            "steps_in_all": self.before.steps + steps,
            "batch": self.settings.batch,
            "crop": self.settings.crop,
            "pairs_sha256": self.data.identity,
            "training_pairs": len(pairs),
            "training_subjects": sorted({*self.before.subjects, *(pair.parameters.subject for pair in pairs)}),
            "validation_subjects": sorted({pair.parameters.subject for pair in self.data.validation_pairs}),
            "presets": sorted({*self.before.presets, *(pair.parameters.preset for pair in pairs)}),
            "last_metrics": metrics,
            **({} if self.before.history is None else {"started_from": self.before.history}),
        }


class StepBar(ProgressBar):
    """Steps done of all steps, with the last loss and scores, on stderr; nothing where stderr is not a terminal."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.console = Console(stderr=True)
        self.drawn = self.console.is_terminal
        self.bar: Progress | None = None

    def disable(self) -> None:
        """Lightning calls it on all processes but the first."""
        self.drawn = False

    def enable(self) -> None:
        """The opposite."""
        self.drawn = self.console.is_terminal

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where the run was left."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.drawn)
        self.bar.add_task("", total=self.steps, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Move on by one step."""
        if self.bar is not None:
            logged = trainer.progress_bar_metrics.items()
            text = "  ".join(f"{name.rpartition('/')[2]} {value:.4g}" for name, value in logged)
            self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, description=text)

    def on_train_end(self, *_: Any) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(self, *_: Any) -> None:
        """The same after an error or an interrupt."""
        self.on_train_end()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and renames it, so that a killed run keeps one of the two."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Lightning's own goes by way of the system's temporary folder, which may lie on another disk."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as temporary:
            torch.save(checkpoint, temporary)
