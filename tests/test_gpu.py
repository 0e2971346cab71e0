"""On a device only, by `pytest -m gpu`: what no fake can show of TensorRT. Elsewhere these count as deselected."""

from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lfmri_export.engine import export_engine
from lfmri_runtime.backends.tensorrt import TensorRtStep
from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.identity import parse_profile
from lfmri_runtime.bundle import GOLDEN, Bundle, open_bundle
from lfmri_runtime.metrics import psnr
from lfmri_runtime.sampler import euler, uniform_time_grid

pytestmark = pytest.mark.gpu

Float32Array = NDArray[np.float32]
#: The golden check's bound, dB; half arithmetic gives about 80.
LEAST_PSNR = 50.0
#: The same kernels on the same numbers; what remains is another kernel for another batch size.
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle()


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> dict[str, Float32Array]:
    with np.load(BytesIO(bundle.read(GOLDEN)), allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def cache(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    profile = parse_profile("1x8x8,2x192x192,4x384x384", multiple=8)
    export_engine(bundle, profile, cache=folder, say=print, progress=lambda done, total: None)
    return folder


@pytest.fixture(scope="module")
def step(bundle: Bundle, cache: Path) -> Iterator[TensorRtStep]:
    opened = TensorRtStep(bundle, cache=cache)
    yield opened
    opened.close()


def test_the_graph_gives_the_golden_results(step: TensorRtStep, bundle: Bundle, golden: Any) -> None:
    for steps in bundle.contract.steps:
        (found,) = step.flow([(golden["x_0"], golden["y"])], uniform_time_grid(steps))
        assert psnr(found, golden[f"result_{steps}"]) >= LEAST_PSNR


def test_a_stream_of_batches_gives_what_single_steps_give(step: TensorRtStep, golden: Any) -> None:
    x_0, y = golden["x_0"], golden["y"]
    rows, columns = (side // 16 * 8 for side in y.shape[2:])
    pairs = [(x_0, y), (y, x_0), (x_0[:1], y[:1]), (x_0[..., :rows, :columns], y[..., :rows, :columns])] * 3
    time_grid = uniform_time_grid(5)
    for found, pair in zip(list(step.flow(iter(pairs), time_grid)), pairs, strict=True):
        np.testing.assert_allclose(found, euler(step, *pair, time_grid), atol=ROUNDING)


def test_arrays_on_the_gpu_give_the_same(step: TensorRtStep, golden: Any) -> None:
    device = Device()
    with ExitStack() as scope:
        stream = device.stream(scope)
        there = []
        for values in (golden["x_0"], golden["y"]):
            address = device.memory(values.nbytes, scope)
            pinned = device.pinned(values.nbytes, scope)
            pinned[:] = np.ascontiguousarray(values).view(np.uint8).ravel()
            device.upload(address, pinned, stream)
            there.append(_OnDevice(address, values.shape, int(stream)))
        pairs: list[Any] = [tuple(there)]
        (found,) = step.flow(pairs, uniform_time_grid(2))
        (expected,) = step.flow([(golden["x_0"], golden["y"])], uniform_time_grid(2))
        device.drain(stream)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)


def test_opening_again_and_again_keeps_the_memory_bounded(bundle: Bundle, cache: Path, golden: Any) -> None:
    from cuda.bindings import driver

    free = []
    for _ in range(5):
        step = TensorRtStep(bundle, cache=cache)
        step(golden["x_0"], golden["y"], 0.0, 1.0)
        step.close()
        free.append(int(driver.cuMemGetInfo()[1]))
    assert min(free[1:]) >= free[0] - (32 << 20)


class _OnDevice:
    def __init__(self, address: int, shape: tuple[int, ...], stream: int) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (address, False), "version": 3, "stream": stream,
        }  # fmt: skip
