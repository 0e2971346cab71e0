"""`lfmri train`: from a folder of pairs to a run folder.

RUN/config.json        the resolved settings, enough to repeat the run
RUN/processing.json    what the contract will say of voxel size and intensities
RUN/checkpoints/       last.ckpt, to resume from
RUN/weights.npz        the averaged weights of the last checkpoint, what export takes
RUN/summary.json       steps, pairs and last validation
RUN/logs/              CSV and TensorBoard
"""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from lfmri_runtime.contract import Processing, render
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import atomic_write, write_json, write_text
from lfmri_trainer.dataset import CountingSampler, CropDataset, Sample, SliceDataset
from lfmri_trainer.module import FlowModule, exponential_average
from lfmri_trainer.network.presets import PRESETS
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.working import learn_processing, working_pairs

logger = logging.getLogger(__name__)

PROCESSING = "processing.json"
WEIGHTS = "weights.npz"
SUMMARY = "summary.json"


def train(settings: TrainingSettings, run: Path, *, resume: bool = False) -> None:
    """Train, or go on from the run's last checkpoint.

    Raises:
        UsageError: settings that cannot work together, or a run folder that already holds a run.
        InputRefused: pairs that cannot be used, or nothing to resume from.
    """
    settings.check()
    checkpoint = run / "checkpoints" / "last.ckpt"
    if resume and not checkpoint.is_file():
        raise InputRefused(f"{checkpoint} not found; expected a run that has reached its first checkpoint")
    if not resume and checkpoint.exists():
        raise UsageError(f"{run} already holds a run; go on with --resume {run}, or choose another --run")
    pl.seed_everything(settings.seed, verbose=False)
    module, data = FlowModule(settings), PairsData(settings)
    data.setup("fit")
    if data.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        settings.save(run)
        write_text(run / PROCESSING, render(data.processing))
    trainer = _trainer(settings, run, data)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint if resume else None, weights_only=True)


class PairsData(pl.LightningDataModule):
    """Loaders of random crops for training and of whole slices for validation."""

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__()
        self.settings = settings
        self.rank, self.world = 0, settings.devices * settings.nodes

    def setup(self, stage: str) -> None:
        """Read the table, learn the intensity standards, open the arrays."""
        s, folder = self.settings, Path(self.settings.pairs)
        rows = read_pairs(folder)
        self.multiple = PRESETS[s.preset].multiple
        self.processing: Processing = learn_processing(folder, rows, voxel_size=s.voxel_size, multiple=self.multiple)
        opened = working_pairs(folder, [r for r in rows if r.split != "test"], self.processing)
        self.train_pairs = [pair for pair in opened if pair.parameters.split == "train"]
        self.validation_pairs = [pair for pair in opened if pair.parameters.split == "validation"]
        if self.trainer is not None:
            self.rank = self.trainer.global_rank

    def train_dataloader(self) -> DataLoader[Sample]:
        """Crops, numbered on through the epochs."""
        s = self.settings
        per_epoch = s.batch * min(s.epoch_steps, s.max_steps)
        dataset = CropDataset(self.train_pairs, crop=s.crop, length=per_epoch, seed=s.seed, scale_jitter=s.scale_jitter)
        batch = s.batch // self.world
        sampler = CountingSampler(per_epoch=per_epoch, batch=batch, rank=self.rank, world=self.world)
        return DataLoader(
            dataset, batch_size=batch, sampler=sampler, num_workers=s.workers, persistent_workers=s.workers > 0
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Whole slices of the validation split; none where it is empty."""
        if not self.validation_pairs:
            return []
        s = self.settings
        dataset = SliceDataset(self.validation_pairs, count=s.validation_slices, multiple=self.multiple, seed=s.seed)
        return DataLoader(dataset, batch_size=1)


class RunRecorder(Callback):
    """Writes the averaged weights and a summary beside every checkpoint; must stand after the averaging callback."""

    def __init__(self, run: Path, settings: TrainingSettings, data: PairsData) -> None:
        self.run = run
        self.settings = settings
        self.data = data

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
            "batch": self.settings.batch,
            "crop": self.settings.crop,
            "training_pairs": len(pairs),
            "training_subjects": sorted({pair.parameters.subject for pair in pairs}),
            "validation_subjects": sorted({pair.parameters.subject for pair in self.data.validation_pairs}),
            "presets": sorted({pair.parameters.preset for pair in pairs}),
            "last_metrics": metrics,
        }


def _trainer(settings: TrainingSettings, run: Path, data: PairsData) -> pl.Trainer:
    world = settings.devices * settings.nodes
    callbacks: list[Callback] = [
        WeightAveraging(avg_fn=exponential_average(settings.ema_decay)),
        RunRecorder(run, settings, data),
        ModelCheckpoint(run / "checkpoints", filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
        RichProgressBar(),
    ]
    return pl.Trainer(
        accelerator="auto",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp" if world > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        max_steps=settings.max_steps,
        check_val_every_n_epoch=settings.validate_every,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if data.validation_pairs else 0,
        gradient_clip_val=settings.gradient_clip,
        callbacks=callbacks,
        logger=[CSVLogger(run / "logs", name="csv"), TensorBoardLogger(run / "logs", name="tensorboard")],
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
