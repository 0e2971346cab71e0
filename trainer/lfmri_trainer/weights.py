"""The averaged weights of a run, and what they learned from.

RUN/weights.npz        plain arrays, nothing pickled
RUN/processing.json    the intensities that they know
RUN/summary.json       steps, pairs, subjects and last validation
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfmri_runtime.contract import Processing
from lfmri_runtime.decoding import decode
from lfmri_runtime.errors import BundleRefused, InputRefused
from lfmri_trainer.network.unet import UNet
from lfmri_trainer.settings import CONFIGURATION, TrainingSettings
from lfmri_trainer.subjects import same_people

WEIGHTS = "weights.npz"
PROCESSING = "processing.json"
SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a run's weights learned from, the runs that it started from included.

    Attributes:
        steps: of the optimiser.
        subjects: names, sorted.
        presets: of the simulated scans, sorted.
        history: as `history`; None where nothing was learned.
    """

    steps: int = 0
    subjects: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    history: dict[str, Any] | None = None


def learned(run: Path | None) -> Learned:
    """Read a run's summary; nothing was learned where there is no run.

    Raises:
        BundleRefused: the summary is missing or is none.
    """
    if run is None:
        return Learned()
    summary = read_summary(run)
    return Learned(
        steps=summary["steps_in_all"],
        subjects=tuple(summary["training_subjects"]),
        presets=tuple(summary.get("presets", ())),
        history=history(run),
    )


def history(run: Path) -> dict[str, Any]:
    """What a contract says of a run: its summary and its settings, and under `started_from` the same of earlier runs.

    Paths of the training machine are left out. A run keeps its own history: what it started from may be gone later.

    Raises:
        BundleRefused: the summary or the settings cannot be read.
    """
    settings = asdict(TrainingSettings.load(run / CONFIGURATION))
    return {
        **read_summary(run),
        "settings": {key: value for key, value in settings.items() if key not in ("pairs", "initial")},
    }


def read_summary(run: Path, *counts: str) -> dict[str, Any]:
    """Read a run's summary: at least `steps_in_all`, `training_subjects` and the named counts.

    Raises:
        BundleRefused: the summary is missing or is none.
    """
    try:
        summary: dict[str, Any] = json.loads((run / SUMMARY).read_text())
        for name in ("steps_in_all", *counts):
            decode(int, summary[name], name)
        decode(tuple[str, ...], summary["training_subjects"], "training_subjects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleRefused(f"{run / SUMMARY}: {error}; expected a run of this version of `lfmri train`") from None
    return summary


def stretches(training: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a contract says of a model's training, and of each run that it started from, the last first."""
    stretch: dict[str, Any] | None = training
    while stretch is not None:
        yield stretch
        stretch = stretch.get("started_from")


def read_processing(run: Path) -> Processing:
    """Read how the scans of a run were processed.

    Raises:
        BundleRefused: the file is missing or is none.
    """
    try:
        found: Processing = decode(Processing, json.loads((run / PROCESSING).read_text()), PROCESSING)
    except (OSError, ValueError) as error:
        raise BundleRefused(f"{run / PROCESSING}: {error}; expected the run that `lfmri train` made") from None
    return found


def refuse_learned(before: Learned, held_out: Iterable[str], what: str) -> None:
    """Refuse held-out subjects that weights learned from; a person's sessions and copies are that person.

    Raises:
        InputRefused: naming them.
    """
    seen = same_people(held_out, before.subjects)
    if seen:
        raise InputRefused(
            f"{what} learned from {', '.join(seen)}, which the split validation holds; expected unseen people there: "
            "simulate with other --validation-subject; other people who only bear these names need others"
        )


def load_weights(network: UNet, run: Path) -> None:
    """Put a run's averaged weights into a network of the same preset.

    Raises:
        BundleRefused: the weights are missing or are not this network's.
    """
    try:
        with np.load(run / WEIGHTS, allow_pickle=False) as arrays:
            network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BundleRefused(
            f"{run / WEIGHTS}: {reason}; expected a run of `lfmri train` with the same preset"
        ) from None
