"""The averaged weights of a run: weights.npz, plain arrays, nothing pickled."""

from pathlib import Path

import numpy as np
import torch

from lfmri_runtime.errors import BundleRefused
from lfmri_trainer.network.unet import UNet

WEIGHTS = "weights.npz"


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
