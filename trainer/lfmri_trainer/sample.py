"""Cut the package's sample scan from a simulated pair: `python -m lfmri_trainer.sample PAIRS PAIR OUT`.

The three volumes are cropped to the head and stored as integers, so that they stay small; what is lost by that is far
below the noise of the scan.
"""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import UsageError
from lfmri_runtime.geometry import AXES
from lfmri_trainer.simulation.pairs import low_path, read_pairs, read_volume, subject_path, write_volume

#: Voxels kept around the brain.
MARGIN = 6
#: Noise standard deviations are cut into this many steps of the integer scan.
STEPS_PER_SIGMA = 4
#: The high-field volume's grey levels.
WHITE = 255


def cut_sample(pairs: Path, name: str, out: Path) -> None:
    """Write lowfield.nii.gz, highfield.nii.gz and mask.nii.gz.

    Args:
        pairs: folder of pairs.
        name: of a SIQT pair, whose slices lie on whole voxels of the subject.
        out: folder of the sample.

    Raises:
        UsageError: no such pair, or one whose slices do not lie on whole voxels.
    """
    pair = {pair.pair: pair for pair in read_pairs(pairs)}.get(name)
    if pair is None or not float(pair.spacing).is_integer() or pair.in_plane:
        raise UsageError(f"{name!r} is not a SIQT pair of {pairs}; expected one with slices on whole voxels")
    low, low_affine = read_volume(low_path(pairs, pair))
    brain, affine = read_volume(subject_path(pairs, pair.subject, "brain"))
    mask, _ = read_volume(subject_path(pairs, pair.subject, "mask"))
    axis, step = AXES.index(pair.thick_axis), int(pair.spacing)
    box = _box(mask > 0, axis, step)
    coarse = list(box)
    coarse[axis] = slice(box[axis].start // step, (box[axis].stop - 1) // step + 1)
    sigma = float(low[brain[_matching(low.shape, axis, step)] == 0].std())
    grey = WHITE / float(np.percentile(brain[mask > 0], 99.9))
    volumes = {
        "lowfield": (np.rint(low[tuple(coarse)] / sigma * STEPS_PER_SIGMA).astype(np.int16), low_affine, coarse),
        "highfield": (np.clip(np.rint(brain[box] * grey), 0, WHITE).astype(np.uint8), affine, box),
        "mask": ((mask[box] > 0).astype(np.uint8), affine, box),
    }
    for kind, (data, grid, window) in volumes.items():
        shifted = grid.copy()
        shifted[:3, 3] += grid[:3, :3] @ [part.start for part in window]
        write_volume(out / f"{kind}.nii.gz", data, shifted)


def _box(mask: NDArray[np.bool_], axis: int, step: int) -> tuple[slice, ...]:
    """The mask's bounding box and a margin; along the thick axis it begins and ends on slices."""
    box = []
    for other in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != other)))
        start, stop = max(filled[0] - MARGIN, 0), min(filled[-1] + MARGIN, mask.shape[other] - 1)
        if other == axis:
            start, stop = start // step * step, stop // step * step
        box.append(slice(int(start), int(stop) + 1))
    return tuple(box)


def _matching(shape: tuple[int, ...], axis: int, step: int) -> tuple[slice, ...]:
    """The subject's voxels on which the low-field slices lie."""
    return tuple(slice(0, n * step, step) if a == axis else slice(0, n) for a, n in enumerate(shape))


@click.command()
@click.argument("pairs", type=click.Path(path_type=Path))
@click.argument("pair")
@click.argument("out", type=click.Path(path_type=Path))
def main(pairs: Path, pair: str, out: Path) -> None:
    """Cut a sample scan from a simulated pair."""
    cut_sample(pairs, pair, out)


if __name__ == "__main__":
    main()
