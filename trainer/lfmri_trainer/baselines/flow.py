"""The proposed model: a bundle's step in the Euler loop, as `lfmri enhance` runs it on slices of one plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.enhancer import BATCH
from lfmri_runtime.sampler import euler, uniform_time_grid
from lfmri_runtime.slices import batches, noise_volume, pad, padded_shape
from lfmri_trainer.baselines.method import Context, Float32Array, Method, Request
from lfmri_trainer.weights import stretches

#: Of x_0: the one that `lfmri enhance` takes when nothing is asked.
SEED = 0


class Flow(Method):
    """A bundle at one number of Euler steps, one sample.

    Args:
        bundle: verified.
        step: its opened step.
        steps: of the Euler method.
    """

    key = "flow"
    note = "slices of one plane alone; `lfmri enhance` also averages the other plane that contains the thick axis."
    proposed = True

    def __init__(self, bundle: Bundle, step: Step, steps: int) -> None:
        contract = bundle.contract
        self.key = f"{type(self).key}-{steps}"
        self.title = f"{contract.name}, {steps} step{'s' if steps > 1 else ''}"
        self.parameters = contract.parameters
        self.budget = _budget(contract.training)
        self.identity = f"{bundle.sha256}, {steps} steps, seed {SEED}"
        self.source_std = contract.source_std
        self.multiple = contract.processing.multiple
        self.step = step
        self.time_grid = uniform_time_grid(steps)

    @classmethod
    def prepare(cls, context: Context) -> Sequence[Method]:
        """Open the bundle once for all numbers of steps."""
        step = open_backend(context.bundle, threads=context.threads)
        return [cls(context.bundle, step, steps) for steps in context.steps]

    def enhance(self, request: Request) -> Float32Array:
        """Integrate the flow for every asked slice, from the same noise that the whole volume would get."""
        shape = padded_shape(request.y.shape, self.multiple)
        x_0 = request.slices(noise_volume(shape, std=self.source_std, seed=SEED, sample=0))
        y = request.slices(pad(request.y, self.multiple))
        rows, columns = request.slices(request.y).shape[1:]
        parts = [
            euler(self.step, x_0[part][:, None], y[part][:, None], self.time_grid) for part in batches(len(y), BATCH)
        ]
        return np.concatenate(parts)[:, 0, :rows, :columns]

    def slices_computed(self, request: Request) -> int:
        """As many as are asked for."""
        return len(request.indices)


def _budget(training: dict[str, Any]) -> str:
    """Steps and crops of each stretch, the first first."""
    runs = [(run["steps"], run["batch"]) for run in stretches(training) if {"steps", "batch"} <= run.keys()]
    return ", then ".join(f"{steps} steps of {batch} crops" for steps, batch in reversed(runs)) or "not said"
