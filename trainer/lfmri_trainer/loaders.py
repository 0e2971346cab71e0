"""The loaders of a run: random crops for training, whole slices for validation."""

from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from lfmri_trainer.dataset import CountingSampler, CropDataset, Sample, SliceDataset
from lfmri_trainer.network.presets import PRESETS
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.weights import read_processing
from lfmri_trainer.working import learn_processing, pairs_identity, working_pairs


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
