"""ONNX Runtime on an NVIDIA GPU: x_t and y stay in the device's memory from the first Euler step to the last."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.backends.onnxruntime import MEMORY, OnnxRuntimeStep, lacks_memory
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.errors import BackendMissing, LfmriError, TryAgainLater

Float32Array = NDArray[np.float32]

#: Characters of a library's message that are kept.
MAX_REASON = 300


class CudaStep(OnnxRuntimeStep):
    """One Euler step by ONNX Runtime's CUDA provider; arguments and errors are `OnnxRuntimeStep`'s."""

    name = "onnxruntime-cuda"
    asked = "CUDAExecutionProvider"
    #: Where arrays are bound.
    device = "cuda"

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        if self.asked not in onnxruntime.get_available_providers():
            raise BackendMissing(
                "this ONNX Runtime is built for the CPU; both builds own the same folder, so swap them: "
                "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
            )
        super().__init__(bundle, threads=threads)
        self._broken = False

    @property
    def broken(self) -> bool:
        """Whether a call on the GPU failed for more than memory: CUDA's errors stay with the process."""
        return self._broken

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w).

        Raises:
            TryAgainLater: too little memory, or the device failed.
        """
        with self._on_device():
            return super().__call__(x_t, y, t, dt)

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        """The Euler loop over a stream of (x_0, y), each (batch, 1, h, w): two buffers of x_t take turns.

        Raises:
            TryAgainLater: too little memory, or the device failed.
        """
        for x_0, y in batches:
            start = time.perf_counter()
            with self._on_device():
                x_1 = self._integrate(x_0, y, time_grid)
            self.seconds += time.perf_counter() - start
            yield x_1

    def _integrate(self, x_0: Float32Array, y: Float32Array, time_grid: NDArray[np.float64]) -> Float32Array:
        condition, now = self._upload(y), self._upload(x_0)
        turns = cycle([self._empty(x_0.shape), self._empty(x_0.shape)])  # x_0 itself may be the caller's memory
        for (t, t_next), after in zip(pairwise(time_grid.tolist()), turns, strict=False):
            binding = self._session.io_binding()
            for name, value in (("x_t", now), ("y", condition)):
                binding.bind_ortvalue_input(name, value)
            for name, number in (("t", t), ("dt", t_next - t)):
                binding.bind_cpu_input(name, np.full(len(x_0), number, dtype=np.float32))
            binding.bind_ortvalue_output("x_next", after)
            self._session.run_with_iobinding(binding)
            now = after
        x_1: Float32Array = now.numpy()
        return x_1

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except LfmriError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises a dozen classes of its own
            if lacks_memory(error):
                raise TryAgainLater(MEMORY) from None
            reason = " ".join(str(error).split())[:MAX_REASON]
            self._broken = True
            raise TryAgainLater(f"the GPU failed ({reason}); look at the system's log and run again") from None

    def _upload(self, image: Float32Array) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(image, self.device, 0)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, self.device, 0)


def open_step(bundle: Bundle, *, threads: int = 0) -> Step:
    """Open the CUDA provider."""
    return CudaStep(bundle, threads=threads)
