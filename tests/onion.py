"""A label map of a head that is made of shells."""

import numpy as np
from numpy.typing import NDArray

from lfmri_trainer.synthesis.volumes import Labels

SHAPE = (52, 56, 48)
#: Radii of the shells, voxels: the head from inside to outside.
SHELLS = {2: 11, 3: 15, 24: 18, 515: 20, 507: 22, 511: 23}
VENTRICLE = 4


def distance() -> NDArray[np.float64]:
    places = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij", sparse=True)
    return np.sqrt(sum(place**2 for place in places))


def onion() -> Labels:
    """A head of shells: white matter around a ventricle, cortex, CSF, bone, soft tissue, skin."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for label, radius in reversed(SHELLS.items()):
        labels[distance() < radius] = label
    labels[distance() < 4] = VENTRICLE
    return labels
