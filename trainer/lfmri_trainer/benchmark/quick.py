"""The package's sample scan as a folder with one test pair, so that a benchmark needs nothing else."""

import shutil
from pathlib import Path

from lfmri_runtime.files import atomic_write
from lfmri_runtime.sample import LOW_FIELD, MASK, REFERENCE
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, subject_path, write_pairs

#: Slices of the sample that are scored: enough for an order of methods, few enough for three minutes.
SLICES = 8
#: What the sample's README says of it.
SAMPLE = PairParameters(
    pair="sample",
    subject="sample",
    split="test",
    preset="siqt-k4",
    anatomy="brain",
    thick_axis="S",
    fixed="GM",
    spacing=4.0,
    thickness=3.0,
    snr_wm=63.5,
    snr_gm=59.5,
    distance=2.14,
    noise="gaussian",
    in_plane=0.0,
    bias=0.0,
    seed=0,
)


def sample_pairs(folder: Path) -> Path:
    """Write the sample as a folder of pairs; returns the folder."""
    copies = {
        low_path(folder, SAMPLE): LOW_FIELD,
        subject_path(folder, SAMPLE.subject, "brain"): REFERENCE,
        subject_path(folder, SAMPLE.subject, "mask"): MASK,
    }
    for path, source in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            shutil.copyfile(source, temporary)
    write_pairs(folder, [SAMPLE])
    return folder
