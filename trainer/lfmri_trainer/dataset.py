"""Training samples: random crops of slices that contain the thick axis, and their noise and time.

A sample is a function of (seed, number) alone. So a run can be repeated and resumed, and two processes that share a
batch see together what one process would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.slices import padded_shape, plane_normals, slices_of
from lfmri_trainer.flow import SIGNAL
from lfmri_trainer.working import WorkingPair

#: A slice is trained on when this share of its voxels holds signal.
LEAST_SIGNAL = 0.02

Sample = dict[str, Tensor]
Float16Array = NDArray[np.float16]
#: Condition and target, (slices, rows, columns) each, and the indices of the slices with signal.
Stack = tuple[Float16Array, Float16Array, NDArray[np.intp]]


class CropDataset(Dataset[Sample]):
    """Samples {x_0, x_1, y: (1, crop, crop); t: ()}, each from its own counter-based generator.

    Args:
        pairs: on the working grid.
        crop: side of the square crop, voxels, a multiple of the network's.
        length: number of samples.
        seed: of all of them.
        source_std: standard deviation of x_0.
        scale_jitter: the condition is multiplied by a factor drawn from 1 +- this, as scans differ in foreground.
        time_power: t has the density (1 - t)^time_power; 0 is uniform. With 2 the velocity's squared error of an x_1
            prediction weighs the errors of x_1 alike at every t, which serves few Euler steps.
        time_zero: this share of the times is exactly 0, where every sampler starts and x_t tells nothing.

    Raises:
        InputRefused: no slice of the pairs holds signal.
    """

    def __init__(
        self,
        pairs: Sequence[WorkingPair],
        *,
        crop: int,
        length: int,
        seed: int,
        source_std: float,
        scale_jitter: float,
        time_power: float,
        time_zero: float,
    ) -> None:
        self.crop = crop
        self.length = length
        self.seed = seed
        self.source_std = np.float32(source_std)
        self.scale_jitter = scale_jitter
        self.time_power = time_power
        self.time_zero = time_zero
        self.stacks = _stacks(pairs, "training")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number])))
        condition, target, usable = self.stacks[rng.integers(len(self.stacks))]
        index = int(rng.choice(usable))
        y, x_1 = self._crop(rng, condition[index], target[index])
        y = y * np.float32(1 + self.scale_jitter * rng.uniform(-1, 1))
        for axis in (0, 1):
            if rng.random() < 0.5:
                y, x_1 = np.flip(y, axis), np.flip(x_1, axis)
        x_0 = self.source_std * rng.standard_normal(y.shape, dtype=np.float32)
        drawn = max(rng.random() - self.time_zero, 0) / (1 - self.time_zero)
        return {
            "x_0": torch.from_numpy(x_0)[None],
            "x_1": torch.from_numpy(x_1.copy())[None],
            "y": torch.from_numpy(y.copy())[None],
            "t": torch.tensor(np.float32(1 - (1 - drawn) ** (1 / (1 + self.time_power)))),
        }

    def _crop(
        self, rng: np.random.Generator, *images: NDArray[np.float16]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        window = []
        for length in images[0].shape:
            start = int(rng.integers(max(length - self.crop, 0) + 1))
            window.append(slice(start, min(start + self.crop, length)))
        cut = [image[tuple(window)].astype(np.float32) for image in images]
        missing = [(0, self.crop - length) for length in cut[0].shape]
        y, x_1 = (np.pad(image, missing) for image in cut)
        return y, x_1


class SliceDataset(Dataset[Sample]):
    """Whole slices {x_0, x_1, y: (1, h, w)} for validation, evenly spaced over pairs and planes.

    Args:
        pairs: of the validation split.
        count: number of slices; a pair's plane gives several, of different places, where it has to.
        multiple: sides are padded with zeros up to it.
        source_std: standard deviation of x_0.
        seed: of the noise.

    Raises:
        InputRefused: no slice of the pairs holds signal.
    """

    def __init__(
        self, pairs: Sequence[WorkingPair], *, count: int, multiple: int, source_std: float, seed: int
    ) -> None:
        stacks = _stacks(pairs, "validation")
        self.multiple = multiple
        self.source_std = np.float32(source_std)
        self.seed = seed
        chosen = [stacks[i] for i in np.linspace(0, len(stacks) - 1, count).astype(int)]
        self.places = [
            (condition, target, int(usable[int(len(usable) * (0.3 + 0.4 * number / max(count - 1, 1)))]))
            for number, (condition, target, usable) in enumerate(chosen)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Sample:
        condition, target, index = self.places[number]
        y, x_1 = (np.asarray(stack[index], dtype=np.float32) for stack in (condition, target))
        missing = [(0, new - old) for new, old in zip(padded_shape(y.shape, self.multiple), y.shape, strict=True)]
        y, x_1 = np.pad(y, missing), np.pad(x_1, missing)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, number])))
        x_0 = self.source_std * rng.standard_normal(y.shape, dtype=np.float32)
        return {name: torch.from_numpy(image)[None] for name, image in (("x_0", x_0), ("x_1", x_1), ("y", y))}


class CountingSampler(Sampler[int]):
    """Numbers samples by the step that takes them, dealt in turn to the processes of a distributed run.

    The numbers go on with the steps and not with the epochs: epochs are counted anew, and loaders read ahead, when a
    run is resumed.

    Args:
        steps_done: says how many steps were taken before an epoch begins.
        steps: of an epoch.
        batch: of one process.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, *, steps_done: Callable[[], int], steps: int, batch: int, rank: int, world: int) -> None:
        self.steps_done = steps_done
        self.steps = steps
        self.batch = batch
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        first = self.steps_done()
        for step in range(first, first + self.steps):
            start = (step * self.world + self.rank) * self.batch
            yield from range(start, start + self.batch)


def _stacks(pairs: Sequence[WorkingPair], split: str) -> list[Stack]:
    """The slices of all pairs, plane by plane.

    Raises:
        InputRefused: none holds signal.
    """
    stacks = [stack for pair in pairs for normal in plane_normals(pair.thick_axis) for stack in _stack(pair, normal)]
    if not stacks:
        raise InputRefused(
            f"no slice of {len(pairs)} {split} pairs holds signal in {LEAST_SIGNAL:.0%} of its voxels; "
            "expected heads that fill more of their volume: crop them and simulate again"
        )
    return stacks


def _stack(pair: WorkingPair, normal: int) -> list[Stack]:
    """The slices of one plane; none where no slice has signal."""
    condition, target = (
        cast(Float16Array, slices_of(cast(Any, volume), normal=normal, thick_axis=pair.thick_axis))
        for volume in (pair.condition, pair.target[tuple(slice(0, n) for n in pair.condition.shape)])
    )
    usable = np.flatnonzero((target > SIGNAL).mean(axis=(1, 2)) > LEAST_SIGNAL)
    return [(condition, target, usable)] if len(usable) else []
