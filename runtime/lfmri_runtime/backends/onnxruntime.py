"""ONNX Runtime on the CPU: the reference back end."""

import time
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.errors import BackendMissing, BundleRefused

Float32Array = NDArray[np.float32]

#: Errors and worse; warnings of the library are not the user's.
LOG_ERRORS = 3
#: The contract's names of the library's types.
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
#: By default CUDA rounds float32 to 10 bits (TF32), and takes the convolutions that won a timing in this very process.
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}


class OnnxRuntimeStep(Step):
    """One Euler step by ONNX Runtime.

    The library's defaults stay: an arena, all optimisations, one session for all shapes. A session for each shape, no
    arena, no spinning and cast elimination were measured and are no faster (`benchmarks/onnxruntime_settings.py`).

    Args:
        bundle: verified; the bytes that are hashed are the bytes that are loaded.
        threads: of the network's arithmetic; 0 takes all cores.

    Raises:
        BackendMissing: the library does not run on what was asked for.
        BundleRefused: the graph cannot be loaded, or its arrays are not those of the contract.
    """

    name = "onnxruntime"
    asked = "CPUExecutionProvider"

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        self._session = open_session(bundle, self.asked, threads=threads)
        self.provider = self.asked
        self.precision = bundle.contract.precision
        self.seconds = 0.0
        _check_arrays(bundle, self._session)

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w)."""
        times = np.full(len(x_t), t, dtype=np.float32)
        start = time.perf_counter()
        result: Float32Array = self._session.run(None, {"x_t": x_t, "y": y, "t": times, "dt": np.full_like(times, dt)})[
            0
        ]
        self.seconds += time.perf_counter() - start
        return result

    def close(self) -> None:
        """Free the session and its memory."""
        del self._session


def open_step(bundle: Bundle, *, threads: int = 0) -> Step:
    """Open the reference back end."""
    return OnnxRuntimeStep(bundle, threads=threads)


def open_session(bundle: Bundle, provider: str, *, threads: int) -> Any:
    """Open the step graph on one provider, and compare what runs with what was asked for.

    The library falls back to the CPU without an error where a provider cannot start.

    Raises:
        BackendMissing: another provider runs.
        BundleRefused: the graph cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS
    content = bundle.read(STEP)
    try:
        providers = [(provider, OPTIONS.get(provider, {}))]
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # noqa: BLE001 - the library raises a dozen classes of its own
        reason = str(error).splitlines()[0]
        raise BundleRefused(f"{bundle.path / STEP} cannot be loaded ({reason}); export the bundle again") from None
    found = session.get_providers()[0]
    if found != provider:
        raise BackendMissing(
            f"ONNX Runtime was asked for {provider} and runs on {found}; expected {provider}: check the GPU's driver "
            "and that CUDA and cuDNN are those that onnxruntime-gpu names"
        )
    return session


def _check_arrays(bundle: Bundle, session: Any) -> None:
    arguments = (*session.get_inputs(), *session.get_outputs())
    found = [(a.name, TYPES.get(a.type, a.type), tuple(map(str, a.shape))) for a in arguments]
    expected = [(s.name, s.dtype, s.shape) for s in (*bundle.contract.inputs, *bundle.contract.outputs)]
    if found != expected:
        raise BundleRefused(
            f"{bundle.path / STEP} has the arrays {found}; its contract says {expected}: export it again"
        )
