"""ONNX Runtime on the CPU: the reference back end."""

import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.errors import BundleRefused

Float32Array = NDArray[np.float32]

#: Errors and worse; warnings of the library are not the user's.
LOG_ERRORS = 3
#: The contract's names of the library's types.
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


class OnnxRuntimeStep:
    """One Euler step by ONNX Runtime.

    Args:
        bundle: verified; the bytes that are hashed are the bytes that are loaded.
        threads: of the network's arithmetic; 0 takes all cores.

    Raises:
        BundleRefused: the graph cannot be loaded, or its arrays are not those of the contract.
    """

    name = "onnxruntime"
    provider = "CPUExecutionProvider"

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_ERRORS
        content = bundle.read(STEP)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=[self.provider])
        except Exception as error:  # noqa: BLE001 - the library raises a dozen classes of its own
            reason = str(error).splitlines()[0]
            raise BundleRefused(f"{bundle.path / STEP} cannot be loaded ({reason}); export the bundle again") from None
        self.precision = bundle.contract.precision
        self.seconds = 0.0
        arguments = (*self._session.get_inputs(), *self._session.get_outputs())
        found = [(a.name, TYPES.get(a.type, a.type), tuple(map(str, a.shape))) for a in arguments]
        expected = [(s.name, s.dtype, s.shape) for s in (*bundle.contract.inputs, *bundle.contract.outputs)]
        if found != expected:
            raise BundleRefused(
                f"{bundle.path / STEP} has the arrays {found}; its contract says {expected}: export it again"
            )

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w)."""
        times = np.full(len(x_t), t, dtype=np.float32)
        start = time.perf_counter()
        result: Float32Array = self._session.run(None, {"x_t": x_t, "y": y, "t": times, "dt": np.full_like(times, dt)})[
            0
        ]
        self.seconds += time.perf_counter() - start
        return result

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Run once on zeros; takes no part in `seconds`."""
        zeros = np.zeros(shape, dtype=np.float32)
        self(zeros, zeros, 0.0, 1.0)
        self.seconds = 0.0
