"""The settings of a training run; resolved once, saved as config.json, and enough to repeat it."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from lfmri_runtime.contract import PREDICTIONS, decode, render
from lfmri_runtime.errors import BundleRefused, InputRefused, UsageError
from lfmri_runtime.files import write_text
from lfmri_trainer.network.presets import PRESETS

CONFIGURATION = "config.json"
PRECISIONS = ("bf16-mixed", "32-true")


def _setting(default: object, text: str) -> object:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What `lfmri train` does; every field is an option of that name. Rates are assumed: the paper's text lost them."""

    pairs: str = field(metadata={"help": "Folder of pairs that `lfmri simulate` made."})
    preset: str = _setting("iqt-cfm", "Network preset.")  # type: ignore[assignment]
    prediction: str = _setting("x_1", "What the network's output is read as.")  # type: ignore[assignment]
    max_steps: int = _setting(20_000, "Optimiser steps in all.")  # type: ignore[assignment]
    batch: int = _setting(4, "Crops a step, over all processes.")  # type: ignore[assignment]
    crop: int = _setting(128, "Side of the square crops, voxels.")  # type: ignore[assignment]
    learning_rate: float = _setting(2e-4, "Adam's rate at the start.")  # type: ignore[assignment]
    minimum_rate: float = _setting(1e-6, "Rate at the end of the cosine.")  # type: ignore[assignment]
    weight_decay: float = _setting(1e-5, "L2 weight decay.")  # type: ignore[assignment]
    ema_decay: float = _setting(0.999, "Decay of the averaged weights.")  # type: ignore[assignment]
    gradient_clip: float = _setting(1.0, "Largest norm of the gradient.")  # type: ignore[assignment]
    scale_jitter: float = _setting(0.1, "Random relative change of the condition's scale.")  # type: ignore[assignment]
    voxel_size: float = _setting(1.0, "Voxel size of the working grid, mm.")  # type: ignore[assignment]
    precision: str = _setting("bf16-mixed", "Arithmetic of the training step.")  # type: ignore[assignment]
    epoch_steps: int = _setting(250, "Steps between checkpoints.")  # type: ignore[assignment]
    validate_every: int = _setting(2, "Checkpoints between validations.")  # type: ignore[assignment]
    validation_slices: int = _setting(8, "Whole slices that a validation samples.")  # type: ignore[assignment]
    workers: int = _setting(0, "Loader processes; 0 loads between the steps.")  # type: ignore[assignment]
    devices: int = _setting(1, "Processes (or GPUs) on each node.")  # type: ignore[assignment]
    nodes: int = _setting(1, "Nodes of a distributed run.")  # type: ignore[assignment]
    seed: int = _setting(0, "Seed of weights, crops, noise and times.")  # type: ignore[assignment]

    def check(self) -> None:
        """Refuse settings that cannot work together.

        Raises:
            UsageError: naming the option, what was found and what was expected.
        """
        for name, allowed in (("preset", PRESETS), ("prediction", PREDICTIONS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"--{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        world = self.devices * self.nodes
        if self.batch % world:
            raise UsageError(f"--batch is {self.batch} for {world} processes; expected a multiple of {world}")
        multiple = PRESETS[self.preset].multiple
        if self.crop <= 0 or self.crop % multiple:
            raise UsageError(f"--crop is {self.crop}; expected a multiple of {multiple} for {self.preset}")
        for name in ("max_steps", "batch", "epoch_steps", "validate_every", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least 1")

    def save(self, run: Path) -> None:
        """Write config.json into the run folder."""
        write_text(run / CONFIGURATION, render(self))

    @classmethod
    def load(cls, path: Path, **changes: object) -> "TrainingSettings":
        """Read a config.json.

        Raises:
            InputRefused: missing, not JSON, or with keys or types that are not this class's.
        """
        try:
            settings = decode(cls, json.loads(path.read_text()), str(path))
        except (OSError, ValueError, BundleRefused) as error:
            raise InputRefused(f"{path}: {error}; expected the {CONFIGURATION} of a training run") from None
        known = {f.name for f in fields(cls)}
        return replace(settings, **{key: value for key, value in changes.items() if key in known})
