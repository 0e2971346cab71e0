"""On a GPU, by `pytest -m gpu`, without TensorRT: the loop's streams, events, graphs and memory on real CUDA.

An engine of one small kernel stands in for TensorRT's, so that what is ours is seen to run where TensorRT is not.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lfmri_runtime.backends.tensorrt import step as step_module
from lfmri_runtime.backends.tensorrt.arrays import DEFAULT_STREAM
from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.engine import Engine
from lfmri_runtime.backends.tensorrt.identity import parse_profile
from lfmri_runtime.backends.tensorrt.plan import GRAPH_STEPS
from lfmri_runtime.backends.tensorrt.step import TensorRtStep
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.sampler import euler, uniform_time_grid

pytestmark = pytest.mark.gpu

Float32Array = NDArray[np.float32]
SOURCE = b"""
extern "C" __global__ void euler_step(
    const float* x_t, const float* y, const float* t, const float* dt, float* x_next, int size, int whole)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < whole) x_next[i] = x_t[i] + dt[i / size] * (y[i] * (1.0f + t[i / size]) - 0.5f * x_t[i]);
}
"""
THREADS = 256


def reference(x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
    return x_t + np.float32(dt) * (y * np.float32(1 + t) - np.float32(0.5) * x_t)


def checked(result: tuple[Any, ...]) -> Any:
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) == 2 else result[1:]


class Context:
    """What the loop uses of an IExecutionContext."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size > 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape if name == "y" else self.shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        from cuda.bindings import driver

        size = self.shape[2] * self.shape[3]
        whole = self.shape[0] * size
        pointers = [np.array([self.addresses[name]], np.uint64) for name in ("x_t", "y", "t", "dt", "x_next")]
        values = [*pointers, np.array([size], np.int32), np.array([whole], np.int32)]
        arguments = np.array([value.ctypes.data for value in values], np.uint64)
        blocks = (-(-whole // THREADS), 1, 1)
        status = driver.cuLaunchKernel(self.kernel, *blocks, THREADS, 1, 1, 0, stream, arguments.ctypes.data, 0)
        return int(status[0]) == 0


def compiled(capability: str) -> bytes:
    from cuda.bindings import nvrtc

    program = checked(nvrtc.nvrtcCreateProgram(SOURCE, b"step.cu", 0, [], []))
    options = [f"--gpu-architecture=sm_{capability.replace('.', '')}".encode(), b"--fmad=false"]
    checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    cubin = b" " * int(checked(nvrtc.nvrtcGetCUBINSize(program)))
    checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Iterator[TensorRtStep]:
    from cuda.bindings import driver

    def opened(bundle: Any, device: Device, *, cache: Any) -> Engine:
        module = checked(driver.cuModuleLoadData(compiled(device.compute_capability)))
        kernel = checked(driver.cuModuleGetFunction(module, b"euler_step"))
        trt = SimpleNamespace(__name__="tensorrt", __version__="11.4")
        engine = SimpleNamespace(device_memory_size_v2=4096, create_execution_context=lambda settings: Context(kernel))
        identity = SimpleNamespace(
            library="a kernel", library_version="1", profile=parse_profile("1x8x8,2x64x64,8x256x256", multiple=8)
        )
        return Engine(trt, engine, None, identity, SimpleNamespace(error="the launch failed"))  # type: ignore[arg-type]

    monkeypatch.setattr(step_module, "open_engine", opened)
    made = TensorRtStep(open_bundle())
    yield made
    made.close()


def stack(*shapes: tuple[int, int, int]) -> list[tuple[Float32Array, Float32Array]]:
    rng = np.random.default_rng(5)
    full = [(batch, 1, rows, columns) for batch, rows, columns in shapes]
    return [(rng.standard_normal(shape, np.float32), rng.random(shape, np.float32)) for shape in full]


@pytest.mark.parametrize("steps", [1, 2, 5, 10, GRAPH_STEPS + 1])
def test_a_stream_of_batches_gives_the_euler_loop(step: TensorRtStep, steps: int) -> None:
    volume = stack(*[(4, 256, 256)] * 20, (1, 256, 256), *[(8, 128, 64)] * 20, (3, 128, 64))
    time_grid = uniform_time_grid(steps)
    for found, (x_0, y) in zip(list(step.flow(iter(volume), time_grid)), volume, strict=True):
        np.testing.assert_allclose(found, euler(reference, x_0, y, time_grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize("named", [True, False], ids=["on a stream that is named", "on the default stream"])
def test_arrays_on_the_gpu_are_read_in_place(step: TensorRtStep, named: bool) -> None:
    from cuda.bindings import driver

    (x_0, y), time_grid = stack((4, 64, 64))[0], uniform_time_grid(5)
    device = Device()
    with ExitStack() as scope:
        stream = device.stream(scope) if named else driver.CUstream(DEFAULT_STREAM)
        there: list[Any] = []
        for values in (x_0, y):
            address = device.memory(values.nbytes, scope)
            pinned = device.pinned(values.nbytes, scope)
            pinned[:] = values.view(np.uint8).ravel()
            device.upload(address, pinned, stream)
            about = {"shape": values.shape, "typestr": "<f4", "data": (address, False), "version": 3}
            about |= {"stream": int(stream)} if named else {"version": 2}
            there.append(SimpleNamespace(shape=values.shape, __cuda_array_interface__=about))
        pairs: list[Any] = [tuple(there), (x_0, there[1]), (there[0], y)] * 4
        for found in step.flow(iter(pairs), time_grid):
            np.testing.assert_allclose(found, euler(reference, x_0, y, time_grid), rtol=0, atol=1e-5)
        device.drain(stream)


def test_shapes_that_come_and_go_keep_the_memory_bounded(step: TensorRtStep) -> None:
    from cuda.bindings import driver

    free = []
    for number in range(60):
        list(step.flow(stack((1 + number % 4, 8 * (1 + number % 15), 64)), uniform_time_grid(3)))
        free.append(int(checked(driver.cuMemGetInfo())[0]))
    assert min(free[20:]) >= free[19] - (32 << 20)


def test_more_memory_than_the_gpu_has_is_one_line_and_leaves_it_usable() -> None:
    device = Device()
    with ExitStack() as scope, pytest.raises(TryAgainLater, match="too little free memory"):
        device.memory(1 << 50, scope)
    assert not device.failed
