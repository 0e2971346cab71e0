"""The golden arrays: real slices, their noise, and what the PyTorch sampler in float32 makes of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lfmri_runtime.contract import Processing
from lfmri_runtime.errors import InputRefused
from lfmri_trainer.dataset import SliceDataset
from lfmri_trainer.flow import sample
from lfmri_trainer.network.unet import UNet
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.working import working_pairs

Float32Array = NDArray[np.float32]

#: Slices of the stack; few, since every result of every number of steps is kept.
COUNT = 2
#: Slices are cropped to this side, which bounds the file and the time of a golden check.
SIDE = 64
#: Seed of the golden noise.
SEED = 20
#: Euler steps that are verified and offered.
STEPS = (1, 2, 5, 10)


@dataclass(frozen=True, eq=False)
class Golden:
    """What golden.npz holds; arrays are (COUNT, 1, SIDE, SIDE), float32."""

    x_0: Float32Array
    y: Float32Array
    x_1: Float32Array
    results: dict[int, Float32Array]

    def arrays(self) -> dict[str, Float32Array]:
        """By the names that they have in the file."""
        return {"x_0": self.x_0, "y": self.y, "x_1": self.x_1, **{f"result_{k}": v for k, v in self.results.items()}}


def make_golden(network: UNet, pairs: Path, processing: Processing, settings: TrainingSettings) -> Golden:
    """Take slices of the pairs that the network was trained with and sample them in float32.

    Raises:
        InputRefused: the folder of pairs is not there any more.
    """
    rows = [row for row in read_pairs(pairs) if row.split != "test"]
    held_out = [row for row in rows if row.split == "validation"] or rows
    slices = SliceDataset(
        working_pairs(pairs, held_out, processing),
        count=COUNT,
        multiple=SIDE,
        source_std=settings.source_std,
        seed=SEED,
    )
    if len(slices) == 0:
        raise InputRefused(f"{pairs} holds no slice with signal; expected the pairs that the run was trained with")
    chosen = [slices[i % len(slices)] for i in range(COUNT)]
    x_0, y, x_1 = (torch.stack([_centre(entry[name]) for entry in chosen]) for name in ("x_0", "y", "x_1"))
    # Halved and widened again, so that the stored condition is exactly what was sampled.
    y, x_1 = y.half().float(), x_1.half().float()
    results = {k: sample(network, x_0, y, steps=k, prediction=settings.prediction).numpy() for k in STEPS}
    return Golden(x_0.numpy(), y.numpy(), x_1.numpy(), results)


def _centre(image: torch.Tensor) -> torch.Tensor:
    top, left = ((side - SIDE) // 2 for side in image.shape[1:])
    return image[:, top : top + SIDE, left : left + SIDE]
