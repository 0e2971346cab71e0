"""A tiny folder of pairs, written by the project's own code: blobs for anatomy, thick slices for a low field."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, subject_path, write_pairs, write_volume

SIDE = 40
SPACING = 4

#: Subject, split and thick axis of each pair.
PAIRS = (("s1", "train", "S"), ("s2", "train", "R"), ("s3", "validation", "A"), ("s4", "test", "S"))


def blobs(seed: int) -> NDArray[np.float32]:
    """A head of about 26 voxels, with brighter and darker blobs inside and zero outside."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"))
    inside = np.sum((place - SIDE / 2 + 0.5) ** 2, axis=0) < 15**2
    volume = np.full((SIDE,) * 3, 500.0)
    for _ in range(12):
        centre, width = rng.uniform(8, SIDE - 8, (3, 1, 1, 1)), rng.uniform(3, 6)
        distance = np.sum((place - centre) ** 2, axis=0)
        volume += rng.uniform(-250, 400) * np.exp(-distance / (2 * width**2))
    return np.where(inside, np.maximum(volume, 50), 0).astype(np.float32)


def parameters(subject: str, split: str, thick_axis: str) -> PairParameters:
    return PairParameters(
        pair=f"{subject}-{thick_axis}",
        subject=subject,
        split=split,
        preset="tiny",
        anatomy="brain",
        thick_axis=thick_axis,
        fixed="WM",
        spacing=float(SPACING),
        thickness=float(SPACING),
        snr_wm=30.0,
        snr_gm=25.0,
        distance=1.0,
        noise="gaussian",
        in_plane=0.0,
        bias=0.0,
        seed=1,
    )


def write_tiny_pairs(folder: Path, pairs: tuple[tuple[str, str, str], ...] = PAIRS) -> Path:
    """Subjects of 40 x 40 x 40 voxels of 1 mm; scans of every fourth slice along the thick axis, blurred along it."""
    folder.mkdir(parents=True)
    rows = [parameters(*pair) for pair in pairs]
    write_pairs(folder, rows)
    for number, row in enumerate(rows):
        volume = blobs(number)
        write_volume(subject_path(folder, row.subject, "brain"), volume, np.eye(4))
        write_volume(subject_path(folder, row.subject, "mask"), (volume > 0).astype(np.uint8), np.eye(4))
        axis = "RAS".index(row.thick_axis)
        thick = np.take(gaussian_filter1d(volume, SPACING / 2.355, axis=axis), range(0, SIDE, SPACING), axis=axis)
        thick = np.abs(thick + np.random.default_rng(number).normal(0, 15, thick.shape))
        affine = np.eye(4)
        affine[axis, axis] = SPACING
        write_volume(low_path(folder, row), (0.2 * thick).astype(np.float32), affine)
    return folder


def tiny_settings(pairs: Path, **changes: Any) -> TrainingSettings:
    """A run of four steps in two epochs that takes seconds on one core."""
    values: dict[str, Any] = {
        "pairs": str(pairs),
        "preset": "iqt-cfm-edge",
        "max_steps": 4,
        "batch": 2,
        "crop": 32,
        "epoch_steps": 2,
        "validate_every": 1,
        "validation_slices": 2,
        "precision": "32-true",
        "seed": 5,
    }
    return TrainingSettings(**{**values, **changes})
