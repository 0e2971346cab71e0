"""ONNX Runtime on the CPU: the reference back end."""

import time
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.errors import BackendMissing, BundleRefused, LfmriError, TryAgainLater

Float32Array = NDArray[np.float32]

#: Errors and worse; warnings of the library are not the user's.
LOG_ERRORS = 3
#: The contract's names of the library's types.
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
#: By default CUDA rounds float32 to 10 bits (TF32), and takes the convolutions that won a timing in this very process.
OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}}
#: What the library says when memory, or another program's end, is all that was missing; the next scan may fit.
FULL = ("failed to allocate", "out of memory", "alloc_failed", "bad_alloc", "busy or unavailable")
MEMORY = "there is too little free memory, or the GPU is busy; close other programs or take a smaller batch"
EXPECTED_PROVIDER = (
    "expected the provider that was asked for: check the GPU's driver and that CUDA and cuDNN are those that "
    "onnxruntime-gpu names"
)


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
        TryAgainLater: too little memory.
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
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w).

        Raises:
            TryAgainLater: too little memory.
        """
        times = np.full(len(x_t), t, dtype=np.float32)
        feeds = {"x_t": x_t, "y": y, "t": times, "dt": np.full_like(times, dt)}
        start = time.perf_counter()
        try:
            result: Float32Array = self._session.run(None, feeds)[0]
        except Exception as error:
            if lacks_memory(error):
                raise TryAgainLater(MEMORY) from None
            raise
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

    Where a provider cannot start, the library falls back to the CPU without an error, or raises Python's own errors;
    for the graph it has classes of its own.

    Raises:
        BackendMissing: another provider runs, or this one cannot start.
        BundleRefused: the graph cannot be loaded.
        TryAgainLater: too little memory.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS
    content = bundle.read(STEP)
    try:
        providers = [(provider, OPTIONS.get(provider, {}))]
        session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=False)
    except Exception as error:  # noqa: BLE001 - the library raises a dozen classes of its own
        raise _refusal(bundle, provider, error) from None
    found = session.get_providers()[0]
    if found != provider:
        raise BackendMissing(f"ONNX Runtime was asked for {provider} and runs on {found}; {EXPECTED_PROVIDER}")
    return session


def lacks_memory(error: Exception) -> bool:
    """Whether an error of the library says that only memory or a free GPU was missing."""
    return any(word in str(error).lower() for word in FULL)


def _refusal(bundle: Bundle, provider: str, error: Exception) -> LfmriError:
    if lacks_memory(error):
        return TryAgainLater(MEMORY)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if provider != OnnxRuntimeStep.asked and isinstance(error, (RuntimeError, ValueError)):
        return BackendMissing(f"{provider} cannot start ({reason}); {EXPECTED_PROVIDER}")
    return BundleRefused(f"{bundle.path / STEP} cannot be loaded ({reason}); export the bundle again")


def _check_arrays(bundle: Bundle, session: Any) -> None:
    arguments = (*session.get_inputs(), *session.get_outputs())
    found = [(a.name, TYPES.get(a.type, a.type), tuple(map(str, a.shape))) for a in arguments]
    expected = [(s.name, s.dtype, s.shape) for s in (*bundle.contract.inputs, *bundle.contract.outputs)]
    if found != expected:
        raise BundleRefused(
            f"{bundle.path / STEP} has the arrays {found}; its contract says {expected}: export it again"
        )
