"""Mean intensities of grey and white matter in a T1w volume, found in its histogram.

One method for the training targets, `lfmri evaluate`, `lfmri report` and the benchmarks: a three-class Gaussian mixture
with one variance, fitted by expectation-maximisation (Dempster, Laird, Rubin 1977). The shared variance keeps the order
of the classes: whatever is darker than the darkest stays with it.
"""

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Bins of the histogram: a bin is a fifth of a per cent of the range, far below the classes' widths.
BINS = 512
#: Percentiles that bound it: vessels, fat and bone that a generous mask lets in would draw a class to them.
BOUNDS = (0.5, 99.5)
#: Shares at which the fit starts: CSF, grey and white matter of an adult, ordered as in T1w.
SHARES = (0.15, 0.50, 0.35)
#: Each class starts with this part of the whole standard deviation.
STARTING_WIDTH = 0.25
#: The fit ends when no mean moves by more than this part of the range, or after so many rounds.
TOLERANCE = 1e-6
ROUNDS = 1000


def tissue_means(volume: Float32Array, mask: Mask) -> tuple[float, float]:
    """Mean intensities of grey and white matter, 0 < GM < WM.

    The third class, the darkest, takes CSF and the rim. Its mean is not given: it moves with the stripping and the
    mask, between 0.2 and 0.5 of white matter on four brains, while those of GM and WM keep to 3 %.

    Args:
        volume: T1w, any unit, zero meaning no signal.
        mask: the brain; voxels without signal in it do not count.

    Raises:
        InputRefused: the mask holds no signal, or fewer than three intensities.
    """
    values = volume[mask & (volume > 0)]
    low, high = (float(bound) for bound in np.percentile(values, BOUNDS)) if values.size else (0.0, 0.0)
    counts, edges = np.histogram(values, bins=BINS, range=(low, high if high > low else low + 1))
    if np.count_nonzero(counts) < len(SHARES):
        raise InputRefused(
            f"the high-field volume holds {np.count_nonzero(counts)} different intensities inside the mask; expected "
            "a T1w brain with CSF, grey and white matter: check the volume and its mask"
        )
    means = _fit(counts.astype(np.float64), (edges[:-1] + edges[1:]) / 2)
    return float(means[1]), float(means[2])


def _fit(counts: Float64Array, centres: Float64Array) -> Float64Array:
    """The three ascending means of a histogram."""
    total = counts.sum()
    shares = np.array(SHARES)
    means = np.interp(np.cumsum(shares) - shares / 2, np.cumsum(counts) / total, centres)
    centre = counts @ centres / total
    variance = STARTING_WIDTH**2 * (counts @ (centres - centre) ** 2) / total
    for _ in range(ROUNDS):
        distance = (centres - means[:, None]) ** 2
        logarithm = np.log(shares)[:, None] - distance / (2 * variance)
        belonging = np.exp(logarithm - logarithm.max(axis=0))
        belonging *= counts / belonging.sum(axis=0)
        sizes = belonging.sum(axis=1)
        moved = np.abs(belonging @ centres / sizes - means).max()
        means, shares = belonging @ centres / sizes, sizes / total
        variance = (belonging * (centres - means[:, None]) ** 2).sum() / total
        if moved <= TOLERANCE * (centres[-1] - centres[0]):
            break
    return means
