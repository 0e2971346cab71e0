"""The Lightning module: flow matching on batches, and validation by the sampler."""

from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.lpips import Lpips
from lfmri_runtime.metrics import psnr
from lfmri_trainer.dataset import Sample
from lfmri_trainer.flow import flow_matching_loss, sample
from lfmri_trainer.network.presets import build_network
from lfmri_trainer.settings import TrainingSettings

#: Steps of the sampler at which validation measures fidelity and perception (method: one step gives the mean).
PSNR_STEPS = 1
LPIPS_STEPS = 10


class FlowModule(pl.LightningModule):
    """Trains a U-Net by conditional flow matching.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__()
        self.settings = settings
        self.network = build_network(settings.preset)
        self._lpips = Lpips()

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        """The flow matching loss of one batch; InputRefused where it is not finite, before it reaches the weights."""
        s = self.settings
        loss = flow_matching_loss(
            self.network,
            batch["x_0"],
            batch["x_1"],
            batch["y"],
            batch["t"],
            prediction=s.prediction,
            air_weight=s.air_weight,
            time_weight=s.time_weight,
        )
        if not torch.isfinite(loss):
            raise InputRefused(
                f"the loss is {loss.item()} after {self.global_step} steps; expected a finite one: lower the rate, and "
                "go on from the last checkpoint with --initial"
            )
        self.log("train/loss", loss, prog_bar=True, on_step=True)
        return loss

    def validation_step(self, batch: Sample, batch_index: int) -> None:
        """PSNR at one Euler step and LPIPS at ten, against the standardised high-field slice; data range 1."""
        fast, slow = (
            sample(self.network, batch["x_0"], batch["y"], steps=steps, prediction=self.settings.prediction)
            for steps in (PSNR_STEPS, LPIPS_STEPS)
        )
        reference = _images(batch["x_1"])
        values = {
            "validation/psnr": psnr(_images(fast), reference),
            "validation/psnr_interpolation": psnr(_images(batch["y"]), reference),
            "validation/lpips": float(np.mean(self._lpips(_images(slow), reference))),
        }
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(reference))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with L2 weight decay, and cosine annealing over the whole run."""
        s = self.settings
        optimizer = Adam(self.network.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
        schedule = CosineAnnealingLR(optimizer, T_max=s.max_steps, eta_min=s.minimum_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def exponential_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Averaging rule of the weights, all at once: a warm-up of (1 + n) / (10 + n), so that short runs average too."""

    def average(averaged: list[Tensor], current: list[Tensor], number: Tensor | int) -> None:
        n = float(number)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return average


def _images(batch: Tensor) -> NDArray[np.float32]:
    images: NDArray[np.float32] = batch[:, 0].float().cpu().numpy()
    return images
