"""LPIPS, the learned perceptual distance (Zhang et al. 2018), version 0.1 with AlexNet, in onnxruntime on the CPU.

The model is a file of this package, `data/lpips/alexnet-v0.1.onnx`; its bytes are checked against SHA256 and those
same bytes are loaded. `lfmri_export.lpips` made it; `data/lpips/NOTICE` has the licences.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import BundleRefused, InputRefused

#: The model file, and what it must hash to.
MODEL = Path(__file__).parent / "data" / "lpips" / "alexnet-v0.1.onnx"
SHA256 = "b55ec674ddbb116c0802304b7e2627b0ad548a0e60b4036085a22f9fa4d491fb"
#: Shortest side in pixels: below 31 nothing is left for AlexNet's second pooling.
MIN_SIDE = 32
#: Slices that pass through the network at once; bounds the memory.
BATCH = 8


class Lpips:
    """The distance between grey slices; lower is more alike, 0 for equal slices.

    The session is opened at the first call. An instance may be shared between threads.

    Args:
        threads: Threads of the session; 0 lets onnxruntime choose.
        model: The model file; another file than the package's must be the same to the byte.
    """

    #: How a report names this metric.
    name = "LPIPS v0.1, AlexNet"

    def __init__(self, *, threads: int = 0, model: Path = MODEL) -> None:
        self.threads = threads
        self.model = model

    def __call__(
        self, images: NDArray[np.float32], references: NDArray[np.float32], *, data_range: float = 1.0
    ) -> NDArray[np.float32]:
        """Compare slices pairwise.

        Values are divided by data_range, clipped to [0, 1], mapped to [-1, 1] and repeated in three channels.

        Args:
            images: Slices to judge, (batch, h, w), finite; h and w at least MIN_SIDE pixels.
            references: The truth, same shape, same scale.
            data_range: The value that stands for white; positive.

        Returns:
            Distances, (batch,), at least 0.

        Raises:
            InputRefused: Shapes that differ, or are not (batch, h, w), or too small; values that are not finite.
            BundleRefused: The model file is missing or is not the expected one.
        """
        _check(images, references, data_range)
        distances = np.empty(len(images), np.float32)
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            feed = {"image": _rgb(images[part], data_range), "reference": _rgb(references[part], data_range)}
            distances[part] = self._session.run(["distance"], feed)[0]
        return distances

    @cached_property
    def _session(self) -> Any:
        """The onnxruntime session on the checked bytes."""
        content = _checked_model(self.model)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _checked_model(model: Path) -> bytes:
    """Read the file once; what is returned is what was hashed."""
    try:
        content = model.read_bytes()
    except OSError as error:
        raise BundleRefused(
            f"{model} cannot be read ({error.strerror}); it comes with lfmri: install it again"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise BundleRefused(f"{model} has SHA-256 {found}; expected {SHA256}: install lfmri again")
    return content


def _check(images: NDArray[np.float32], references: NDArray[np.float32], data_range: float) -> None:
    if images.ndim != 3 or images.shape != references.shape or min(images.shape[1:]) < MIN_SIDE:
        raise InputRefused(
            f"LPIPS got shapes {images.shape} and {references.shape}; it takes two stacks (batch, h, w) of one shape, "
            f"h and w at least {MIN_SIDE}: resample or crop them alike"
        )
    if not (np.isfinite(data_range) and data_range > 0):
        raise InputRefused(f"the data range is {data_range}; it must be a positive number: 1.0 after scaling")
    if not (np.isfinite(images).all() and np.isfinite(references).all()):
        raise InputRefused("a slice holds values that are not finite; LPIPS needs finite ones: replace NaN and inf")


def _rgb(slices: NDArray[np.float32], data_range: float) -> NDArray[np.float32]:
    """(batch, h, w) in [0, data_range] -> (batch, 3, h, w) in [-1, 1]."""
    scaled = np.clip(slices.astype(np.float32) / np.float32(data_range), 0.0, 1.0) * 2.0 - 1.0
    return np.repeat(scaled[:, None], 3, axis=1)
