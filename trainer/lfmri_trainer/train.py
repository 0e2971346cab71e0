"""`lfmri train`: from a folder of pairs to a run folder.

RUN/config.json        the resolved settings, enough to repeat the run
RUN/processing.json    what the contract will say of voxel size and intensities
RUN/checkpoints/       last.ckpt, to resume from
RUN/weights.npz        the averaged weights of the last checkpoint, what export takes
RUN/summary.json       steps, pairs and last validation, and the same of the runs that it started from
RUN/logs/              CSV and TensorBoard
"""

import logging
import math
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from lfmri_runtime.contract import render
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import atomic_write, write_json, write_text
from lfmri_trainer.dataset import CountingSampler, CropDataset, Sample, SliceDataset
from lfmri_trainer.module import FlowModule, exponential_average
from lfmri_trainer.network.presets import PRESETS
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.weights import (
    PROCESSING,
    SUMMARY,
    WEIGHTS,
    Learned,
    learned,
    load_weights,
    read_processing,
    read_summary,
    refuse_learned,
)
from lfmri_trainer.working import learn_processing, pairs_identity, working_pairs

CHECKPOINT = "checkpoints/last.ckpt"


def train(settings: TrainingSettings, run: Path, *, resume: bool = False) -> None:
    """Train, or go on from the run's last checkpoint.

    Raises:
        UsageError: settings that cannot work together, or a run folder that already holds a run.
        InputRefused: pairs that cannot be used, people held out that the weights learned from, nothing to resume
            from or other pairs than before, or a loss that is not finite.
    """
    settings.check()
    checkpoint = run / CHECKPOINT
    if resume and not checkpoint.is_file():
        raise InputRefused(f"{checkpoint} not found; expected a run that has reached its first checkpoint")
    if not resume and checkpoint.exists():
        raise UsageError(f"{run} already holds a run; go on with --resume {run}, or choose another --run")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below that it advertises
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # hints about numbers of workers and logging intervals
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # so it is when resuming
        warnings.filterwarnings("ignore", "The dirpath has changed")  # the run folder was moved, which is allowed
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # Lightning's own
        pl.seed_everything(settings.seed, verbose=False)
        start = Path(settings.initial) if settings.initial else None
        module, data = FlowModule(settings), PairsData(settings, run if resume else start)
        before = _resumed(run, data) if resume else _begun(start, data)
        if start is not None and not resume:
            load_weights(module.network, start)
        trainer = _trainer(settings, run, data, before)
        if trainer.is_global_zero:
            run.mkdir(parents=True, exist_ok=True)
            settings.save(run)
            write_text(run / PROCESSING, render(data.processing))
        _fit(trainer, module, data, checkpoint if resume else None)


def _begun(start: Path | None, data: "PairsData") -> Learned:
    """What the weights that a new run starts from have learned from: none of the people that it holds out."""
    before = learned(start)
    refuse_learned(before, (pair.parameters.subject for pair in data.validation_pairs), str(start))
    return before


def _resumed(run: Path, data: "PairsData") -> Learned:
    """The same, by the run's own word: what it started from may be gone. Its pairs must be what they were."""
    summary = read_summary(run, "steps")
    if summary.get("pairs_sha256", data.identity) != data.identity:
        raise InputRefused(
            f"{data.settings.pairs} holds other pairs than {run} learns from; expected the same pairs for "
            f"training and validation: take the added ones out, or start a new run with --initial {run}"
        )
    return Learned(
        steps=summary["steps_in_all"] - summary["steps"],
        subjects=tuple(summary["training_subjects"]),
        presets=tuple(summary["presets"]),
        history=summary.get("started_from"),
    )


def _fit(trainer: pl.Trainer, module: FlowModule, data: "PairsData", checkpoint: Path | None) -> None:
    """Train; an interrupt leaves by its own exception and a termination by its own exit code, as in any program."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


class PairsData(pl.LightningDataModule):
    """Loaders of random crops for training and of whole slices for validation.

    Args:
        settings: of the run.
        earlier: run whose weights go on to learn; they know scans by its scale of intensities, which stays. None learns
            the scale from the training split.

    Attributes:
        identity: SHA-256 of the draws of the training and validation pairs, and of their processing.

    Raises:
        InputRefused: the table or a volume cannot be used, or there is no training pair.
        BundleRefused: the earlier run has no scale.
    """

    def __init__(self, settings: TrainingSettings, earlier: Path | None = None) -> None:
        super().__init__()
        self.settings = settings
        folder = Path(settings.pairs)
        rows = read_pairs(folder)
        self.multiple = PRESETS[settings.preset].multiple
        size, multiple = settings.voxel_size, self.multiple
        if earlier is None:
            self.processing = learn_processing(folder, rows, voxel_size=size, multiple=multiple)
        else:
            self.processing = replace(read_processing(earlier), voxel_size=size, multiple=multiple)
        used = [row for row in rows if row.split != "test"]
        self.identity = pairs_identity(used, self.processing)
        opened = working_pairs(folder, used, self.processing)
        self.train_pairs = [pair for pair in opened if pair.parameters.split == "train"]
        self.validation_pairs = [pair for pair in opened if pair.parameters.split == "validation"]

    def train_dataloader(self) -> DataLoader[Sample]:
        """Crops, numbered by the step that takes them."""
        s, trainer = self.settings, self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        steps, batch = min(s.epoch_steps, s.max_steps), s.batch // world
        dataset = CropDataset(
            self.train_pairs,
            crop=s.crop,
            length=s.max_steps * s.batch,
            seed=s.seed,
            source_std=s.source_std,
            scale_jitter=s.scale_jitter,
            time_power=s.time_power,
            time_zero=s.time_zero,
        )
        sampler = CountingSampler(
            steps_done=lambda: trainer.global_step if trainer is not None else 0,
            steps=steps,
            batch=batch,
            rank=rank,
            world=world,
        )
        return DataLoader(
            dataset, batch_size=batch, sampler=sampler, num_workers=s.workers, persistent_workers=s.workers > 0
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Whole slices of the validation split; none where it is empty or none are asked for."""
        s = self.settings
        if not self.validation_pairs or not s.validation_slices:
            return []
        dataset = SliceDataset(
            self.validation_pairs,
            count=s.validation_slices,
            multiple=self.multiple,
            source_std=s.source_std,
            seed=s.seed,
        )
        return DataLoader(dataset, batch_size=1)


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


def _trainer(settings: TrainingSettings, run: Path, data: PairsData, before: Learned) -> pl.Trainer:
    folder, last = (run / CHECKPOINT).parent, (run / CHECKPOINT).stem
    callbacks: list[Callback] = [
        WeightAveraging(multi_avg_fn=exponential_average(settings.ema_decay)),
        RunRecorder(run, settings, data, before),
        LastStep(settings.max_steps),
        ModelCheckpoint(
            folder, filename=last, every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
        ),
        StepBar(settings.max_steps),
    ]
    return pl.Trainer(
        accelerator="auto",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
        precision=cast(Literal["bf16-mixed", "32-true"], settings.precision),
        max_epochs=math.ceil(settings.max_steps / settings.epoch_steps),
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if data.validation_pairs and settings.validation_slices else 0,
        gradient_clip_val=settings.gradient_clip,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        logger=[CSVLogger(run / "logs", name="csv"), TensorBoardLogger(run / "logs", name="tensorboard")],
        log_every_n_steps=min(10, settings.epoch_steps),
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
