"""The flow's own U-Net trained by plain regression: what flow matching itself adds."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from lfmri_runtime.errors import UsageError
from lfmri_trainer.baselines.fitting import Batch, Moment, NetworkSettings
from lfmri_trainer.baselines.method import Context, Progress
from lfmri_trainer.baselines.networks import SliceNetworkMethod
from lfmri_trainer.baselines.pairs import TrainingPairs
from lfmri_trainer.network.presets import PRESETS, build_network
from lfmri_trainer.network.unet import UNet
from lfmri_trainer.weights import Learned, learned, load_weights


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(NetworkSettings):
    """As the flow's training.

    Attributes:
        preset: of the network.
        initial: run whose averaged weights it starts from, as `lfmri train --initial`; empty for fresh ones.
    """

    preset: str = "iqt-cfm"
    initial: str = ""


class Regression(SliceNetworkMethod):
    """E || f(y) - x_1 ||^2 with the same network, fed zeros in place of x_t, at t = 0; the posterior mean."""

    key = "regression"
    title = "U-Net, regression"
    Settings = RegressionSettings

    @classmethod
    def usual_settings(cls, context: Context) -> RegressionSettings:
        """Take the proposed model's network."""
        network = context.bundle.contract.network
        return RegressionSettings(preset=network) if network in PRESETS else RegressionSettings()

    def build(self, settings: RegressionSettings) -> nn.Module:
        """Make the preset's U-Net."""
        if settings.preset not in PRESETS:
            raise UsageError(f"preset is {settings.preset!r}; expected one of {', '.join(PRESETS)}")
        self.multiple = PRESETS[settings.preset].multiple
        return build_network(settings.preset)

    def earlier(self) -> Learned:
        """What the run learned from."""
        return learned(Path(self.settings.initial)) if self.settings.initial else Learned()

    def learn(self, training: TrainingPairs, *, checkpoint: Path, progress: Progress) -> str:
        """Fit from fresh weights or from a run's."""
        if not self.settings.initial:
            return super().learn(training, checkpoint=checkpoint, progress=progress)
        load_weights(cast(UNet, self.network), Path(self.settings.initial))
        spent = super().learn(training, checkpoint=checkpoint, progress=progress)
        return f"{spent}, after {self.earlier().steps} steps of flow matching"

    def predict(self, y: Tensor) -> Tensor:
        """One evaluation of the network."""
        output: Tensor = self.network(torch.zeros_like(y), y, torch.zeros(len(y), device=y.device))
        return output.float()

    def loss(self, batch: Batch, moment: Moment) -> Tensor:
        """Mean squared error."""
        return (self.predict(batch["y"]) - batch["x_1"]).square().mean()
