"""The loop that fits a network: Adam, averaged weights, a budget of steps or minutes, and a checkpoint.

A batch is a function of the number of its step, so a fit that was stopped and goes on ends where one that never
stopped ends. The checkpoint holds plain arrays: weights, their average, and Adam's moments.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_trainer.baselines.fitted import Arrays, load_arrays, save_arrays
from lfmri_trainer.baselines.method import Progress
from lfmri_trainer.settings import PRECISIONS, TrainingSettings

#: Decay of the averaged weights, the largest norm of the gradient, and the rate at the end of the cosine: the flow's.
AVERAGING = float(TrainingSettings.ema_decay)
GRADIENT_CLIP = float(TrainingSettings.gradient_clip)
MINIMUM_RATE = float(TrainingSettings.minimum_rate)
#: Seconds of fitting between checkpoints; what a stop loses at most.
CHECKPOINT_SECONDS = 120.0

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What every network's fit has; the defaults are the flow's.

    Attributes:
        steps: of the optimiser; the budget, unless minutes are given.
        minutes: the budget where it is not 0.
        batch: samples a step.
        crop: side of a sample, voxels.
        learning_rate: Adam's at the start.
        weight_decay: L2.
        precision: bf16-mixed or 32-true.
        scale_jitter: random relative change of the condition's scale.
        seed: of weights and samples.
    """

    steps: int = TrainingSettings.max_steps
    minutes: float = 0.0
    batch: int = TrainingSettings.batch
    crop: int = TrainingSettings.crop
    learning_rate: float = TrainingSettings.learning_rate
    weight_decay: float = TrainingSettings.weight_decay
    precision: str = TrainingSettings.precision
    scale_jitter: float = TrainingSettings.scale_jitter
    seed: int = 0

    def check(self, *, multiple: int) -> None:
        """Refuse settings that cannot work; `crop` must be divisible by `multiple`."""
        if self.steps < 1 or self.batch < 1 or not 0 <= self.minutes < math.inf or self.seed < 0:
            raise UsageError(
                f"steps {self.steps}, minutes {self.minutes}, batch {self.batch}, seed {self.seed}; expected at least "
                "one step and one sample, and no negative number"
            )
        if self.crop < 1 or self.crop % multiple:
            raise UsageError(f"crop is {self.crop}; expected a multiple of {multiple}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}; expected {' or '.join(PRECISIONS)}")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where in its budget a fit is: the number of the step, and the share of the budget that is used, in [0, 1)."""

    step: int
    share: float


def cosine(rate: float, share: float) -> float:
    """Cosine annealing from `rate` to MINIMUM_RATE over the budget."""
    return MINIMUM_RATE + (rate - MINIMUM_RATE) * (1 + math.cos(math.pi * share)) / 2


class Fit:
    """A network that is being fitted, on the GPU that PyTorch has, else on the CPU; it ends on the CPU.

    Args:
        network: with fresh weights; it ends with the averaged ones.
        settings: of the fit.
        groups: parameters by group.
        identity: of what is fitted on what; a checkpoint of another is refused.
    """

    def __init__(
        self, network: nn.Module, settings: NetworkSettings, *, groups: Sequence[Iterable[nn.Parameter]], identity: str
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device)
        self.settings = settings
        self.optimizer = Adam(
            [{"params": list(group)} for group in groups], lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = {name: value.clone() for name, value in network.state_dict().items()}
        self.about = json.loads(json.dumps({"settings": asdict(settings), "data": identity}))
        self.step = 0
        self.seconds = 0.0

    def run(
        self,
        *,
        batch: Callable[[int], Batch],
        loss: Callable[[Batch, Moment], Tensor],
        rates: Callable[[float], Sequence[float]],
        checkpoint: Path,
        progress: Progress,
    ) -> str:
        """Spend the budget.

        Args:
            batch: of a step, by its number.
            loss: a scalar.
            rates: learning rate of each group, by the share of the budget that is used.
            checkpoint: written every CHECKPOINT_SECONDS; gone on with where it is there.
            progress: called with (done, total), steps or seconds.

        Returns:
            What was spent, in words.

        Raises:
            InputRefused: a checkpoint that cannot be read, or a loss that is not finite.
            UsageError: a checkpoint of another fit.
        """
        if checkpoint.is_file():
            self._resume(checkpoint)
        self.network.train()
        saved = self.seconds
        while (share := self._share()) < 1:
            started = time.monotonic()
            there = {name: value.to(self.device) for name, value in batch(self.step).items()}
            self._advance(there, loss, Moment(step=self.step, share=share), rates(share))
            self.seconds += time.monotonic() - started
            self.step += 1
            progress(*self._progress())
            if self.seconds - saved >= CHECKPOINT_SECONDS:
                self._save(checkpoint)
                saved = self.seconds
        self.network.load_state_dict(self.average)
        self.network.cpu().eval()
        s = self.settings
        minutes = f"{s.minutes:g} minutes: " if s.minutes else ""
        return f"{minutes}{self.step} steps of {s.batch} crops of {s.crop}"

    def _share(self) -> float:
        s = self.settings
        return self.seconds / (60 * s.minutes) if s.minutes else self.step / s.steps

    def _progress(self) -> tuple[int, int]:
        s = self.settings
        return (int(self.seconds), round(60 * s.minutes)) if s.minutes else (self.step, s.steps)

    def _advance(
        self, batch: Batch, loss: Callable[[Batch, Moment], Tensor], moment: Moment, rates: Sequence[float]
    ) -> None:
        """One step of Adam, then of the averaged weights (with the flow's warm-up)."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16-mixed"):
            value = loss(batch, moment)
        if not torch.isfinite(value):
            raise InputRefused(
                f"the loss is {float(value)} at step {moment.step}; expected a finite one: lower the rate"
            )
        self.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_CLIP)
        self.optimizer.step()
        weight = 1 - min(AVERAGING, (1 + moment.step) / (10 + moment.step))
        for name, current in self.network.state_dict().items():
            average = self.average[name]
            average.lerp_(current, weight) if average.is_floating_point() else average.copy_(current)

    def _save(self, checkpoint: Path) -> None:
        arrays: dict[str, Any] = {"step": np.array(self.step), "seconds": np.array(self.seconds)}
        parts = {"network": self.network.state_dict(), "average": self.average}
        for number, moments in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer.{number}"] = moments
        for part, values in parts.items():
            arrays |= {f"{part}/{name}": value.cpu().numpy() for name, value in values.items()}
        save_arrays(checkpoint, arrays, self.about)

    def _resume(self, checkpoint: Path) -> None:
        try:
            arrays, about = load_arrays(checkpoint)
            if about != self.about:
                raise UsageError(
                    f"{checkpoint} was begun with other settings or pairs; expected the same to go on: use them, or "
                    "remove it"
                )
            self.network.load_state_dict(_part(arrays, "network"))
            self.average = {name: value.to(self.device) for name, value in _part(arrays, "average").items()}
            state = {
                number: _part(arrays, f"optimizer.{number}")
                for number in range(sum(len(group["params"]) for group in self.optimizer.param_groups))
            }
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.step, self.seconds = int(arrays["step"]), float(arrays["seconds"])
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputRefused(f"{checkpoint}: {reason}; expected a checkpoint of this fit: remove it") from None


def _part(arrays: Arrays, part: str) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)
    }
