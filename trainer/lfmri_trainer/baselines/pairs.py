"""The pairs that baselines are fitted on: the training split, on the working grid of the bundle's contract."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lfmri_runtime.contract import Processing, render
from lfmri_runtime.errors import InputRefused
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.working import Float16Array, WorkingPair, pairs_identity, working_pairs


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs of the split train.

    Attributes:
        pairs: on the working grid.
        identity: of their draws and their processing.
        scale: identity of their processing alone.
    """

    pairs: Sequence[WorkingPair]
    identity: str
    scale: str

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects, sorted."""
        return sorted({pair.parameters.subject for pair in self.pairs})

    @property
    def presets(self) -> list[str]:
        """Names of the simulator's presets, sorted."""
        return sorted({pair.parameters.preset for pair in self.pairs})

    @classmethod
    def open(cls, folder: Path, rows: Sequence[PairParameters], processing: Processing) -> "TrainingPairs":
        """Open the training pairs among the rows of pairs.csv.

        Raises:
            InputRefused: there is none, or a volume cannot be used.
        """
        chosen = [row for row in rows if row.split == "train"]
        if not chosen:
            raise InputRefused(
                f"{folder}: no pair has the split train; expected some to fit a baseline on: give pairs that have, "
                "or fitted baselines with --fitted"
            )
        identity = pairs_identity(chosen, processing)
        return cls(working_pairs(folder, chosen, processing), identity, scale_of(processing))


def scale_of(processing: Processing) -> str:
    """Identity of scales and working grid; what was fitted on others cannot be compared."""
    return hashlib.sha256(render(processing).encode()).hexdigest()


def volumes(training: TrainingPairs) -> list[tuple[Float16Array, Float16Array]]:
    """Condition and target of each pair on one grid, the thick axis first; views of the memory-mapped arrays."""
    return [
        (
            np.moveaxis(pair.condition, pair.thick_axis, 0),
            np.moveaxis(pair.target[tuple(slice(0, n) for n in pair.condition.shape)], pair.thick_axis, 0),
        )
        for pair in training.pairs
    ]
