"""What fitted networks have in common: weights as plain arrays, batches of crops, inference."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from lfmri_trainer.baselines.fitted import Arrays, Fitted
from lfmri_trainer.baselines.fitting import Batch, Fit, Moment, NetworkSettings, cosine
from lfmri_trainer.baselines.method import Float32Array, Progress, SliceMethod
from lfmri_trainer.baselines.pairs import TrainingPairs
from lfmri_trainer.dataset import CropDataset
from lfmri_trainer.network.unet import parameter_count


class NetworkMethod(Fitted):
    """A fitted network.

    Args:
        settings: a NetworkSettings.
    """

    #: Sides of samples and slices must be divisible by this many voxels.
    multiple: int

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = self.build(settings)
        settings.check(multiple=self.multiple)
        self.network.eval()
        self.parameters = parameter_count(self.network)

    @abstractmethod
    def build(self, settings: Any) -> nn.Module:
        """Make the network with fresh weights; set `multiple`."""

    @abstractmethod
    def samples(self, training: TrainingPairs) -> Callable[[int], Batch]:
        """Give the batch of a step, by its number."""

    @abstractmethod
    def loss(self, batch: Batch, moment: Moment) -> Tensor:
        """What is made small."""

    def groups(self) -> Sequence[Iterable[nn.Parameter]]:
        """Parameters by learning rate; one group unless a method says otherwise."""
        return [self.network.parameters()]

    def rates(self, share: float) -> Sequence[float]:
        """Learning rate of each group when a share of the budget is used; cosine annealing unless said otherwise."""
        return [cosine(self.settings.learning_rate, share)]

    def learn(self, training: TrainingPairs, *, checkpoint: Path, progress: Progress) -> str:
        """Fit the network from fresh weights, or go on from the checkpoint."""
        identity = f"{self.key} {training.identity}"
        fit = Fit(self.network, self.settings, groups=self.groups(), identity=identity)
        return fit.run(
            batch=self.samples(training), loss=self.loss, rates=self.rates, checkpoint=checkpoint, progress=progress
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the network's state."""
        return {name: value.numpy() for name, value in self.network.state_dict().items()}

    def restore(self, arrays: Arrays) -> None:
        """Put a state into the network; all of it must be there."""
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.network.eval()


class SliceNetworkMethod(NetworkMethod, SliceMethod):
    """A fitted network that sees slices, padded with zeros up to its multiple."""

    def samples(self, training: TrainingPairs) -> Callable[[int], Batch]:
        """Crops of slices as the flow is trained on, in both planes that contain the thick axis."""
        s = self.settings
        crops = CropDataset(
            training.pairs,
            crop=s.crop,
            length=0,
            seed=s.seed,
            source_std=1.0,
            scale_jitter=s.scale_jitter,
            time_power=0.0,
            time_zero=0.0,
        )
        return numbered(crops, s.batch)

    @abstractmethod
    def predict(self, y: Tensor) -> Tensor:
        """(slices, 1, h, w) -> x_1_hat of the same shape; h and w divisible by `multiple`."""

    @torch.no_grad()
    def enhance_slices(self, y: Float32Array) -> Float32Array:
        """(slices, rows, columns) -> the same shape."""
        rows, columns = y.shape[1:]
        padding = [(0, 0), (0, -rows % self.multiple), (0, -columns % self.multiple)]
        predicted = self.predict(torch.from_numpy(np.pad(y, padding))[:, None])
        result: Float32Array = predicted[:, 0, :rows, :columns].numpy()
        return result


def numbered(samples: Dataset[Any], size: int) -> Callable[[int], Batch]:
    """Batches of a data set whose samples are a function of their number."""

    def batch(step: int) -> Batch:
        collated: Batch = default_collate([samples[number] for number in range(step * size, (step + 1) * size)])
        return collated

    return batch
