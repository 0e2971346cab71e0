"""The calls of CUDA's driver that the back end makes, each checked.

The driver's interface and not the runtime's: `cuda.bindings.runtime` carries a CUDA runtime of its own, which refuses
a driver that is older than itself; the driver's calls used here are in every driver since CUDA 11.4.
"""

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import BackendMissing, TryAgainLater, missing_extra
from lfmri_runtime.machine import closed_gpu_files

#: None of the calls here takes a flag.
_NO_FLAGS = 0


def load_driver() -> Any:
    """Import the driver's bindings; they load without a driver.

    Raises:
        BackendMissing: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        raise missing_extra("trt", "cuda-bindings") from None
    return driver


class Device:
    """The GPU that is current in this process, or the first one.

    The context that is current (pycuda's, for example) is taken, so that its arrays can be read; where there is none,
    the device's primary context is retained, until the process ends as with every CUDA library.

    Attributes:
        name: of the GPU.
        compute_capability: as "8.7".
        multiprocessors: their number, which tells apart GPUs of one name, as a Jetson's modules have.
        cuda_version: the latest that the driver knows, as "12.6".
        failed: an error was seen after which nothing on the device can be trusted.

    Raises:
        BackendMissing: no cuda-bindings, no driver, or no GPU.
        TryAgainLater: there may be a GPU, and it does not answer now.
    """

    def __init__(self) -> None:
        self._cuda = load_driver()
        self.failed = False
        try:
            status = self._cuda.cuInit(_NO_FLAGS)[0]
        except RuntimeError as error:  # the bindings did not find the driver's library
            raise BackendMissing(_no_gpu(" ".join(str(error).split()))) from None
        codes = self._cuda.CUresult
        # What stays until the machine is changed; after any other status the GPU may answer next time.
        lasting = (
            codes.CUDA_ERROR_NO_DEVICE,
            codes.CUDA_ERROR_STUB_LIBRARY,
            codes.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            codes.CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE,
        )
        if status in lasting:
            raise BackendMissing(_no_gpu(status.name))
        if status != codes.CUDA_SUCCESS:
            raise TryAgainLater(_no_gpu(status.name))
        self._context = self._check(self._cuda.cuCtxGetCurrent())
        if int(self._context) == 0:
            device = self._check(self._cuda.cuDeviceGet(0))
            self._context = self._check(self._cuda.cuDevicePrimaryCtxRetain(device))
        self.use()
        device = self._check(self._cuda.cuCtxGetDevice())
        self.name = bytes(self._check(self._cuda.cuDeviceGetName(100, device))).split(b"\0")[0].decode()
        kinds = self._cuda.CUdevice_attribute
        major, minor, self.multiprocessors = (
            int(self._check(self._cuda.cuDeviceGetAttribute(kind, device)))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )
        )
        self.compute_capability = f"{major}.{minor}"
        version = int(self._check(self._cuda.cuDriverGetVersion()))
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"

    def use(self) -> None:
        """Make the context current in this thread; every public call of the back end begins with it."""
        self._check(self._cuda.cuCtxSetCurrent(self._context))

    def free_mib(self) -> float:
        """Free memory of the GPU, MiB; on a Jetson the whole machine's, since the two share it."""
        self.use()
        return int(self._check(self._cuda.cuMemGetInfo())) / 2**20

    # What is made here is freed by the scope. A release's own error is ignored: there is no answer to it.

    def memory(self, size: int, scope: ExitStack) -> int:
        """Device memory, aligned to 256 bytes; its address."""
        address = int(self._check(self._cuda.cuMemAlloc(size)))
        scope.callback(self._cuda.cuMemFree, address)
        return address

    def pinned(self, size: int, scope: ExitStack) -> NDArray[np.uint8]:
        """Host memory that the GPU copies from and to by itself; not to be touched after the scope has closed."""
        address = int(self._check(self._cuda.cuMemHostAlloc(size, _NO_FLAGS)))
        scope.callback(self._cuda.cuMemFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def stream(self, scope: ExitStack) -> Any:
        """A stream that does not wait for the default stream."""
        stream = self._check(self._cuda.cuStreamCreate(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING.value))
        scope.callback(self._cuda.cuStreamDestroy, stream)
        return stream

    def event(self, scope: ExitStack) -> Any:
        """An event without a time; waiting for it on the host gives the core to others."""
        flags = self._cuda.CUevent_flags
        kind = flags.CU_EVENT_DISABLE_TIMING.value | flags.CU_EVENT_BLOCKING_SYNC.value
        event = self._check(self._cuda.cuEventCreate(kind))
        scope.callback(self._cuda.cuEventDestroy, event)
        return event

    def graph(self, stream: Any, enqueue: Callable[[], None], scope: ExitStack) -> Any:
        """Record what `enqueue` puts on the stream, and nothing of other threads, as a graph to launch many times."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with ExitStack() as recording:
            self._check(self._cuda.cuStreamBeginCapture(stream, mode))
            try:
                enqueue()
            finally:  # an error must not leave the stream in its capture
                status, graph = self._cuda.cuStreamEndCapture(stream)
                if status == self._cuda.CUresult.CUDA_SUCCESS:
                    recording.callback(self._cuda.cuGraphDestroy, graph)
            self._check((status,))
            launchable = self._check(self._cuda.cuGraphInstantiate(graph, _NO_FLAGS))
        scope.callback(self._cuda.cuGraphExecDestroy, launchable)
        return launchable

    def launch(self, graph: Any, stream: Any) -> None:
        """Replay a graph."""
        self._check(self._cuda.cuGraphLaunch(graph, stream))

    def upload(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """Copy pinned memory to the device; returns before it is done."""
        self._check(self._cuda.cuMemcpyHtoDAsync(target, source.ctypes.data, source.nbytes, stream))

    def download(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """Copy device memory to pinned memory; returns before it is done."""
        self._check(self._cuda.cuMemcpyDtoHAsync(target.ctypes.data, source, target.nbytes, stream))

    def record(self, event: Any, stream: Any) -> None:
        """Mark what the stream holds so far."""
        self._check(self._cuda.cuEventRecord(event, stream))

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream's next work wait until the event's mark is reached."""
        self._check(self._cuda.cuStreamWaitEvent(stream, event, _NO_FLAGS))

    def wait_for_stream(self, stream: Any, other: int, event: Any) -> None:
        """Let a stream's next work wait for all that somebody else's stream (its handle) holds."""
        self.record(event, self._cuda.CUstream(other))
        self.wait(stream, event)

    def finish(self, event: Any) -> None:
        """Wait on the host for the event's mark."""
        self._check(self._cuda.cuEventSynchronize(event))

    def drain(self, stream: Any) -> None:
        """Wait on the host for all that the stream holds."""
        self._check(self._cuda.cuStreamSynchronize(stream))

    def fail(self, reason: str) -> TryAgainLater:
        """Give the error of a device that cannot be trusted any more."""
        self.failed = True
        return TryAgainLater(f"the GPU failed ({reason}); look at the system's log and run again")

    def _check(self, result: tuple[Any, ...]) -> Any:
        """Give the value of a call.

        Raises:
            TryAgainLater: it failed.
        """
        status, *values = result
        codes = self._cuda.CUresult
        if status == codes.CUDA_SUCCESS:
            return values[0] if values else None
        if status == codes.CUDA_ERROR_OUT_OF_MEMORY:
            raise TryAgainLater("the GPU has too little free memory; close other programs or take a smaller batch")
        raise self.fail(status.name)


def _no_gpu(reason: str) -> str:
    """Why there is no GPU, and what to do; to a user who may not open it, CUDA says that there is none."""
    closed = closed_gpu_files()
    if not closed:
        return f"no NVIDIA GPU is usable ({reason}); expected one with its driver: check nvidia-smi"
    return (
        f"no NVIDIA GPU is usable ({reason}, {closed[0]} is closed to this user); expected a user of its group: "
        "on a Jetson sudo usermod -aG video $USER, then log in again"
    )
