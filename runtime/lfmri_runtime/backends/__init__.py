"""Back ends: each opens a bundle's step graph and gives a `Step`."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle

Float32Array = NDArray[np.float32]


class Step(Protocol):
    """One Euler step on a machine.

    Attributes:
        name: of the back end.
        provider: what runs it, as its library says after opening, not as it was asked for.
        precision: of the weights.
        seconds: spent inside the library's calls so far.
    """

    name: str
    provider: str
    precision: str
    seconds: float

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t), all (batch, 1, h, w)."""
        ...

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Run once on zeros of this shape, so that the first scan does not pay for set-up."""
        ...


def open_backend(bundle: Bundle, *, threads: int = 0) -> Step:
    """Open the step graph with ONNX Runtime, the reference back end.

    Args:
        bundle: verified.
        threads: of the network's arithmetic; 0 takes all cores.
    """
    from lfmri_runtime.backends.onnxruntime import OnnxRuntimeStep

    return OnnxRuntimeStep(bundle, threads=threads)
