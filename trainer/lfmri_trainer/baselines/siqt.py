"""SIQT: the anisotropic 3-D U-Net on patches, their overlaps averaged (Lin et al. 2023)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lfmri_runtime.errors import InputRefused
from lfmri_trainer.baselines.anisotropic_network import FACTOR, PATCH, AnisotropicUNet
from lfmri_trainer.baselines.fitting import Batch, Moment, NetworkSettings
from lfmri_trainer.baselines.method import Float32Array, VolumeMethod
from lfmri_trainer.baselines.networks import NetworkMethod, numbered
from lfmri_trainer.baselines.pairs import TrainingPairs, volumes
from lfmri_trainer.flow import SIGNAL

#: Voxels between patches: they overlap by a quarter, at corners eight of them (assumed).
STRIDE = 3 * PATCH // 4
#: Patches that pass through the network at once.
PATCHES = 16
#: A patch is trained on when this share of it holds signal (assumed); so many draws are made to find one.
LEAST_SIGNAL = 0.1
DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class SiqtSettings(NetworkSettings):
    """Lin et al. 2023: batch 32, Adam 1e-3, decay 1e-6."""

    batch: int = 32
    crop: int = PATCH
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6


class Siqt(NetworkMethod, VolumeMethod):
    """Every FACTOR-th slice of the interpolated scan to isotropic voxels; squared error."""

    key = "siqt"
    title = "SIQT, 3-D U-Net"
    note = (
        f"its input is every {FACTOR}th slice of the interpolated scan along the thick axis: the measured slices where "
        f"they are {FACTOR} voxels of the working grid apart; of scans with closer ones it is not given all."
    )
    Settings = SiqtSettings

    def build(self, settings: SiqtSettings) -> nn.Module:
        """Four poolings: 16 voxels, but a patch is the least."""
        self.multiple = PATCH
        return AnisotropicUNet()

    def samples(self, training: TrainingPairs) -> Callable[[int], Batch]:
        """Patches of volumes."""
        s = self.settings
        return numbered(PatchDataset(training, side=s.crop, scale_jitter=s.scale_jitter, seed=s.seed), s.batch)

    def loss(self, batch: Batch, moment: Moment) -> Tensor:
        """Mean squared error."""
        predicted: Tensor = self.network(batch["y"])
        return (predicted.float() - batch["x_1"]).square().mean()

    @torch.no_grad()
    def enhance_volume(self, y: Float32Array) -> Float32Array:
        """Tile the volume with overlapping patches and average them."""
        padded = np.pad(y, [(0, _padding(length)) for length in y.shape], mode="edge")
        total, count = np.zeros((2, *padded.shape), np.float32)
        starts = list(product(*(range(0, length - PATCH + 1, STRIDE) for length in padded.shape)))
        for first in range(0, len(starts), PATCHES):
            windows = [tuple(slice(s, s + PATCH) for s in start) for start in starts[first : first + PATCHES]]
            patches = torch.from_numpy(np.stack([padded[window][::FACTOR] for window in windows]))[:, None]
            for window, patch in zip(windows, self.network(patches)[:, 0].numpy(), strict=True):
                total[window] += patch
                count[window] += 1
        whole: Float32Array = (total / count)[tuple(slice(0, length) for length in y.shape)]
        return whole


def _padding(length: int) -> int:
    """Voxels to add so that patches at every STRIDE cover the axis to its end."""
    return PATCH - length if length <= PATCH else -(length - PATCH) % STRIDE


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches {y: (1, side / FACTOR, side, side), x_1: (1, side, side, side)}, each from its own generator.

    Args:
        training: pairs.
        side: voxels.
        scale_jitter: the condition is multiplied by a factor drawn from 1 +- this.
        seed: of all patches.

    Raises:
        InputRefused: no volume holds a patch.
    """

    def __init__(self, training: TrainingPairs, *, side: int, scale_jitter: float, seed: int) -> None:
        self.volumes = [pair for pair in volumes(training) if min(pair[0].shape) >= side]
        self.side = side
        self.scale_jitter = scale_jitter
        self.seed = seed
        if not self.volumes:
            raise InputRefused(f"no training volume holds {side} voxels on every axis; expected whole heads")

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number])))
        y, x_1 = next(patch for patch in self._draws(rng) if (patch[1] > SIGNAL).mean() >= LEAST_SIGNAL)
        y = y[::FACTOR] * np.float32(1 + self.scale_jitter * rng.uniform(-1, 1))
        for axis in (1, 2):
            if rng.random() < 0.5:
                y, x_1 = np.flip(y, axis), np.flip(x_1, axis)
        return {name: torch.from_numpy(patch.copy())[None] for name, patch in (("y", y), ("x_1", x_1))}

    def _draws(self, rng: np.random.Generator) -> Iterator[tuple[Float32Array, Float32Array]]:
        """Random patches that start on a slice; never more than DRAWS."""
        for _ in range(DRAWS):
            y, x_1 = self.volumes[rng.integers(len(self.volumes))]
            start = [int(rng.integers(length - self.side + 1)) for length in y.shape]
            start[0] -= start[0] % FACTOR
            window = tuple(slice(s, s + self.side) for s in start)
            yield y[window].astype(np.float32), x_1[window].astype(np.float32)
        raise InputRefused(f"{DRAWS} random patches hold no signal; expected heads that fill more of their volume")
