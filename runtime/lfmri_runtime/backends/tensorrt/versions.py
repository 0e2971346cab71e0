"""What differs between TensorRT 10, TensorRT 11 and TensorRT-RTX; every other module here uses what all three share.

The modules are not imported before they are needed, and no object of theirs may be made before CUDA has answered
(`cuda.Device`): without a driver they crash the process instead of raising.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lfmri_runtime.errors import BackendMissing

if TYPE_CHECKING:
    import tensorrt as trt

#: The library of Jetson and x86, and the one of RTX cards, by the names that they are imported by.
TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
#: The line that mends a missing library; TensorRT itself is not on PyPI.
HINTS = {
    TENSORRT: "it comes with JetPack, into an environment made by python3 -m venv --system-site-packages, or for x86 "
    "from NVIDIA's package index (docs/engines.md)",
    RTX: "it comes with: pip install tensorrt-rtx",
}


def load(flavour: str) -> Any:
    """Import one of the two libraries.

    Args:
        flavour: TENSORRT or RTX.

    Raises:
        BackendMissing: it is not installed, or its own libraries are not found.
    """
    try:
        return import_module(flavour)
    except Exception as error:  # noqa: BLE001 - a stub or a half installation raises whatever it likes
        reason = " ".join(str(error).split())[:200]
        raise BackendMissing(f"{flavour} cannot be imported ({reason}); {HINTS[flavour]}") from None


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT-RTX, which compiles its kernels on the console and has numbers of its own."""
    return bool(trt.__name__ == RTX)


def is_modern(trt: Any) -> bool:
    """Whether this is TensorRT 11 or TensorRT-RTX, which lack what 10 deprecated; 10.0 lacks what replaced it."""
    return is_rtx(trt) or int(trt.__version__.split(".")[0]) >= 11


def activation_bytes(trt: Any, engine: "trt.ICudaEngine") -> int:
    """Device memory that a context of the engine works in at its profile's largest shape."""
    if is_modern(trt):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def context_settings(trt: Any, engine: "trt.ICudaEngine") -> tuple[Any, Any]:
    """What all contexts of an engine are made with: they work in memory of ours, so that they can share it.

    Returns:
        the settings, and the cache of kernels that they point to without holding it, to be kept for as long as the
        engine; None where the library compiles none here.
    """
    ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if is_rtx(trt):
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(ours)
        # Kernels for a shape are compiled before they first run, since a graph must not keep a stopgap, and once only.
        settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = settings.create_runtime_cache()
        settings.set_runtime_cache(cache)
        return settings, cache
    return ours, None


def create_context(
    trt: Any, engine: "trt.ICudaEngine", settings: Any, *, memory: int, size: int
) -> "trt.IExecutionContext | None":
    """Make a context.

    Args:
        trt: the library.
        engine: deserialised.
        settings: the first of `context_settings`.
        memory: device address, a multiple of 256.
        size: of it, as `activation_bytes` says.

    Returns:
        None where the library could not make one.
    """
    context = engine.create_execution_context(settings)
    if context is None:
        return None
    if is_modern(trt):
        context.set_device_memory(memory, size)
    else:
        context.device_memory = memory
    return context


def create_log(trt: Any) -> Any:
    """Make a logger that keeps the last error for our own message and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.error = "no reason given"

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.error = " ".join(text.split())[:300]

    return Log()
