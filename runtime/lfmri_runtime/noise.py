"""Standard deviation of a scan's noise, found in the scan itself."""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: White noise of standard deviation 1 leaves Immerkaer's operator with 6, its norm.
_GAIN = 6.0
#: Median absolute value of a Gaussian in units of its standard deviation.
MEDIAN_PER_SIGMA = 0.6744897501960817
#: Standard deviation of Rayleigh's distribution, the magnitude of noise alone: sqrt(2 - pi / 2) of each channel's.
_RAYLEIGH = 0.6551363775620336
#: Fewer voxels than this give no estimate.
FEWEST = 500


def noise_sigma(scan: Float32Array, *, head: Mask, air: Mask, planes: tuple[int, ...]) -> float | None:
    """Standard deviation of the noise, in the scan's units; None where none can be found.

    Immerkaer's operator, second differences along both axes of the plane (1996, Computer Vision and Image
    Understanding 64, 300-302), removes what varies slowly; the median of its absolute value stands for his mean, so
    that edges and ghosts weigh little. It is taken in the air where the scan has some that is not filled with one
    value, else in the head, where structure makes it an upper bound. Air without negative values is that of a
    magnitude image and has Rayleigh's distribution (Gudbjartsson and Patz 1995, Magn Reson Med 34, 910-914).

    Args:
        scan: (i, j, k), any unit.
        head: where the head is.
        air: where it surely is not.
        planes: the two axes of a slice plane.
    """
    response = scan
    for axis in planes:
        response = np.diff(response, 2, axis=axis)
    inner = tuple(slice(1, -1) if axis in planes else slice(None) for axis in range(3))
    values, response = scan[inner], np.abs(response)
    for region, magnitude in ((air[inner], bool((values[air[inner]] >= 0).all())), (head[inner], False)):
        # Where a voxel is zero, or everything around it one value, the scan was filled or masked.
        found = response[region & (values != 0) & (response > 0)]
        if len(found) >= FEWEST:
            return float(np.median(found)) / (MEDIAN_PER_SIGMA * _GAIN * (_RAYLEIGH if magnitude else 1.0))
    return None
