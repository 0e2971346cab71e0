"""The settings of a training run; resolved once, saved as config.json, and enough to repeat it."""

import json
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lfmri_runtime.contract import MAX_SOURCE_STD, PREDICTIONS, decode, render
from lfmri_runtime.errors import BundleRefused, InputRefused, UsageError
from lfmri_runtime.files import write_text
from lfmri_trainer.network.presets import PRESETS

CONFIGURATION = "config.json"
#: Least and most of a number; what is not finite lies outside.
RANGES = {
    "learning_rate": (1e-9, 1.0),
    "minimum_rate": (0.0, 1.0),
    "weight_decay": (0.0, 1.0),
    "ema_decay": (0.0, 1.0),
    "gradient_clip": (1e-9, 1e9),
    "scale_jitter": (0.0, 0.9),
    "time_power": (0.0, 100.0),
    "time_weight": (0.0, 4.0),
    "voxel_size": (0.2, 10.0),
}
PRECISIONS = ("bf16-mixed", "32-true")


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What `lfmri train` does; every field is an option of that name. Rates are assumed: the paper's text lost them.

    A field that is added later has the default that was meant before, so that earlier runs can still be read.
    """

    pairs: str = field(metadata={"help": "Folder of pairs that `lfmri simulate` made."})
    preset: str = _setting("iqt-cfm", "Network preset.")
    prediction: str = _setting("x_1", "What the network's output is read as.")
    max_steps: int = _setting(20_000, "Optimiser steps in all.")
    batch: int = _setting(4, "Crops a step, over all processes.")
    crop: int = _setting(128, "Side of the square crops, voxels.")
    learning_rate: float = _setting(2e-4, "Adam's rate at the start.")
    minimum_rate: float = _setting(1e-6, "Rate at the end of the cosine.")
    weight_decay: float = _setting(0.0, "L2 weight decay.")
    ema_decay: float = _setting(0.999, "Decay of the averaged weights.")
    gradient_clip: float = _setting(1.0, "Largest norm of the gradient.")
    scale_jitter: float = _setting(0.1, "Random relative change of the condition's scale.")
    source_std: float = _setting(1.0, "Standard deviation of x_0, on the standard scale.")
    time_power: float = _setting(0.0, "Times are drawn with density (1 - t)^power; 0 is uniform.")
    time_zero: float = _setting(0.0, "Share of the times that are exactly 0, where every sampler starts.")
    air_weight: float = _setting(1.0, "Weight of the air's voxels in the loss; the head's have 1.")
    time_weight: float = _setting(0.0, "The loss at time t is multiplied by (1 - t)^weight.")
    initial: str = _setting("", "Run whose averaged weights the network starts from; empty for fresh ones.")
    voxel_size: float = _setting(1.0, "Voxel size of the working grid, mm.")
    precision: str = _setting("bf16-mixed", "Arithmetic of the training step.")
    epoch_steps: int = _setting(250, "Steps between checkpoints.")
    validate_every: int = _setting(2, "Checkpoints between validations.")
    validation_slices: int = _setting(8, "Whole slices that a validation samples.")
    workers: int = _setting(0, "Loader processes; 0 loads between the steps.")
    devices: int = _setting(1, "Processes (or GPUs) on each node.")
    nodes: int = _setting(1, "Nodes of a distributed run.")
    seed: int = _setting(0, "Seed of weights, crops, noise and times.")

    def check(self) -> None:
        """Refuse settings that cannot work together.

        Raises:
            UsageError: naming the option, what was found and what was expected.
        """
        for name, allowed in (("preset", PRESETS), ("prediction", PREDICTIONS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"--{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        least = {"max_steps": 1, "batch": 1, "epoch_steps": 1, "validate_every": 1, "devices": 1, "nodes": 1}
        for name, smallest in {**least, "validation_slices": 0, "workers": 0, "seed": 0}.items():
            if getattr(self, name) < smallest:
                found = getattr(self, name)
                raise UsageError(f"--{name.replace('_', '-')} is {found}; expected at least {smallest}")
        for name, (low, high) in RANGES.items():
            found = getattr(self, name)
            if not low <= found <= high:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} is {found:g}; expected at least {low:g} and at most {high:g}")
        if not 0 < self.source_std <= MAX_SOURCE_STD:
            raise UsageError(f"--source-std is {self.source_std:g}; expected above 0 and at most {MAX_SOURCE_STD:g}")
        if not 0 <= self.time_zero < 1:
            raise UsageError(f"--time-zero is {self.time_zero:g}; expected at least 0 and below 1")
        if not 0 < self.air_weight <= 1:
            raise UsageError(f"--air-weight is {self.air_weight:g}; expected above 0 and at most 1")
        world = self.devices * self.nodes
        if self.batch % world:
            raise UsageError(f"--batch is {self.batch} for {world} processes; expected a multiple of {world}")
        multiple = PRESETS[self.preset].multiple
        if self.crop <= 0 or self.crop % multiple:
            raise UsageError(f"--crop is {self.crop}; expected a multiple of {multiple} for {self.preset}")

    def save(self, run: Path) -> None:
        """Write config.json into the run folder."""
        write_text(run / CONFIGURATION, render(self))

    @classmethod
    def of(cls, document: Any, *, where: str) -> "TrainingSettings":
        """Settings from JSON values; what an earlier version did not write yet has its default.

        Raises:
            BundleRefused: unknown keys, wrong types, or no pairs.
        """
        if isinstance(document, dict):
            defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
            document = {**defaults, **document}
        settings: TrainingSettings = decode(cls, document, where)
        return settings

    @classmethod
    def load(cls, path: Path, **changes: Any) -> "TrainingSettings":
        """Read a config.json.

        Raises:
            InputRefused: missing, not JSON, or with keys or types that are not this class's.
        """
        try:
            settings = cls.of(json.loads(path.read_text()), where=str(path))
        except (OSError, ValueError, BundleRefused) as error:
            raise InputRefused(f"{path}: {error}; expected the {CONFIGURATION} of a training run") from None
        known = {f.name for f in fields(cls)}
        return replace(settings, **{key: value for key, value in changes.items() if key in known})
