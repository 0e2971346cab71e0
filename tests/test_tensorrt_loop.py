"""The TensorRT back end's loop on a fake GPU: its numbers, the order on its streams, its failures, what it frees."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import EnumMeta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real
from numpy.typing import NDArray

from lfmri_export.rtx import export_rtx_engines
from lfmri_runtime import cache
from lfmri_runtime.backends import open_backend
from lfmri_runtime.backends.tensorrt import TensorRtStep, cuda
from lfmri_runtime.backends.tensorrt.identity import parse_profile
from lfmri_runtime.backends.tensorrt.plan import GRAPH_STEPS
from lfmri_runtime.backends.tensorrt.step import PLANS
from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.errors import BackendMissing, BundleRefused, InputRefused, LfmriError, TryAgainLater
from lfmri_runtime.sampler import euler, uniform_time_grid

from .bundles import MakeBundle
from .fake_cuda import RELEASES, FakeArray, FakeDriver, Race
from .fake_machine import PROFILE, Machine
from .fake_tensorrt import KINDS, members

Float32Array = NDArray[np.float32]
Batches = list[tuple[Float32Array, Float32Array]]

LOST = real.CUresult.CUDA_ERROR_LAUNCH_FAILED
FULL = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Bundle:
    return open_bundle(make_bundle("noisy"))


@pytest.fixture(params=["10", "11"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> Machine:
    made = Machine(monkeypatch, bundle, tmp_path, request.param)
    made.build()
    return made


def stack(*shapes: tuple[int, int, int]) -> Batches:
    rng = np.random.default_rng(11)
    full = [(batch, 1, rows, columns) for batch, rows, columns in shapes]
    return [(rng.standard_normal(shape, np.float32), rng.random(shape, np.float32)) for shape in full]


def expected(bundle: Bundle, batches: Batches, steps: int) -> list[Float32Array]:
    step = open_backend(bundle, threads=1)
    return [euler(step, x_0, y, uniform_time_grid(steps)) for x_0, y in batches]


VOLUME = stack((2, 16, 8), (2, 16, 8), (2, 16, 8), (1, 16, 8), (2, 8, 24), (2, 8, 24))


# Numbers


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_flow_gives_what_the_reference_back_end_gives(machine: Machine, steps: int) -> None:
    step = machine.open()
    found = list(step.flow(iter(VOLUME), uniform_time_grid(steps)))
    for one, other in zip(found, expected(machine.bundle, VOLUME, steps), strict=True):
        np.testing.assert_array_equal(one, other)
    assert machine.driver.launches == len(VOLUME)
    assert step.seconds > 0
    step.close()
    assert machine.left() == []


def test_tensorrt_rtx_runs_what_was_built_ahead_of_time(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, bundle, tmp_path, "rtx")
    options: dict[str, Any] = {"say": lambda line: None, "progress": lambda done, total: None, "cache": tmp_path}
    machine.driver.capability = (8, 9)
    assert len(
        list(export_rtx_engines(bundle, parse_profile(PROFILE, multiple=8), targets=("SM86", "SM89"), **options))
    )
    step = machine.open()
    assert step.provider == "tensorrt_rtx 1.7.1.116 on Fake GPU"
    (found,) = step.flow(VOLUME[:1], uniform_time_grid(2))
    np.testing.assert_array_equal(found, expected(bundle, VOLUME[:1], 2)[0])
    assert machine.trt.state.built[1]._targets == {0: 89}
    machine.driver.capability = (12, 0)
    with pytest.raises(BundleRefused, match=r"compute_capability is 8.[69]; expected 12.0"):
        machine.open()


def test_kernels_are_compiled_once_for_all_processes(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, bundle, tmp_path, "rtx")
    machine.driver.capability = (8, 9)
    options: dict[str, Any] = {"say": lambda line: None, "progress": lambda done, total: None, "cache": tmp_path}
    profile = parse_profile(PROFILE, multiple=8)
    ((plan, _),) = export_rtx_engines(bundle, profile, targets=["SM89"], **options)
    file, compiled = plan.with_suffix(".kernels"), machine.trt.state.compiled
    (wanted,) = expected(bundle, VOLUME[:1], 1)

    def compiles() -> int:
        before = len(compiled)
        np.testing.assert_array_equal(machine.open()(*VOLUME[0], 0.0, 1.0), wanted)  # and is not closed, as if killed
        return len(compiled) - before

    assert compiles() == 1
    kept = (file.stat().st_ino, file.read_bytes())
    assert compiles() == 0
    assert (file.stat().st_ino, file.read_bytes()) == kept, "written for nothing"
    for place in (0, 40, -1):
        damaged = bytearray(kept[1])
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert compiles() == 1, "damage was not seen"
        assert file.read_bytes() == kept[1]
    machine.driver.name = "Other GPU"
    assert (compiles(), compiles()) == (1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "MAX_SEALED_BYTES", 10)
        assert compiles() == 1
    file.unlink()
    file.mkdir()
    assert compiles() == 1, "a file that cannot be written costs time alone"


def test_one_step_at_any_time_and_a_flow_do_not_disturb_each_other(machine: Machine) -> None:
    step, reference = machine.open(), open_backend(machine.bundle, threads=1)
    x, y = VOLUME[0]
    for t, dt in ((0.0, 1.0), (0.25, 0.5), (0.25, 0.25)):
        np.testing.assert_array_equal(step(x, y, t, dt), reference(x, y, t, dt))
        list(step.flow(VOLUME[:2], uniform_time_grid(1)))
    step.warmup((4, 1, 64, 64))
    assert step.seconds == 0


def test_a_loop_too_long_for_a_graph_gives_the_same(machine: Machine) -> None:
    steps = GRAPH_STEPS + 1
    (found,) = machine.open().flow(VOLUME[:1], uniform_time_grid(steps))
    np.testing.assert_array_equal(found, expected(machine.bundle, VOLUME[:1], steps)[0])
    assert machine.driver.launches == 0


def test_many_shapes_take_bounded_memory(machine: Machine) -> None:
    step = machine.open()
    batches = stack(*((1, 8 * rows, 8) for rows in range(1, 9)), *((2, 8, 8 * n) for n in range(1, 9)))
    sizes = []
    for n, found in enumerate(step.flow(batches, uniform_time_grid(1))):
        sizes.append(len(machine.driver.memory))
        np.testing.assert_array_equal(found, expected(machine.bundle, batches[n : n + 1], 1)[0])
    assert max(sizes) == PLANS + 1
    step.close()
    assert machine.left() == []


# Arrays on the GPU


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("stream", "version"), [(None, 2), (None, 3), (2, 3), (12345, 3)])
def test_arrays_on_the_gpu_are_read_where_they_are(
    machine: Machine, steps: int, stream: int | None, version: int
) -> None:
    step, driver = machine.open(), machine.driver
    there = [tuple(FakeArray(driver, array, stream=stream, version=version) for array in pair) for pair in VOLUME[:3]]
    wanted = expected(machine.bundle, VOLUME[:3], steps)
    for batches, uploads in ((there, 0), ([(x, there[n][1]) for n, (x, _) in enumerate(VOLUME[:3])], 3)):
        list(step.flow(VOLUME[:1], uniform_time_grid(steps)))
        before = driver.calls.count("cuMemcpyHtoDAsync")
        found = list(step.flow(batches, uniform_time_grid(steps)))
        assert driver.calls.count("cuMemcpyHtoDAsync") - before == uploads
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    for array in (array for pair in there for array in pair):
        left = driver.bytes_at(array.address, array.values.nbytes)
        np.testing.assert_array_equal(left, array.values.view(np.uint8).ravel())
        array.free()
    step.close()
    assert not set(machine.left()) - {"streams"}


@pytest.mark.parametrize(
    "changes",
    [
        {"typestr": "<f8"},
        {"shape": (2, 1, 8, 16)},
        {"strides": (512, 512, 4, 64)},
        {"mask": object()},
        {"data": ((1 << 40) + 4, False)},
    ],
)
def test_an_array_on_the_gpu_that_cannot_be_read_in_place_is_refused(machine: Machine, changes: dict[str, Any]) -> None:
    step = machine.open()
    x, y = VOLUME[0]
    with pytest.raises(InputRefused, match="copy it first"):
        step(FakeArray(machine.driver, x, **changes), y, 0.0, 1.0)  # type: ignore[arg-type]
    assert step(x, y, 0.0, 1.0).shape == x.shape


# Order


def skipping(driver: FakeDriver, function: str, which: int) -> None:
    """Let one call of a function do nothing."""
    seen = count()
    driver.skip = lambda name, number: name == function and next(seen) == which


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("function", ["cuStreamWaitEvent", "cuEventSynchronize"])
def test_the_order_hangs_on_every_single_wait(machine: Machine, function: str, where: str) -> None:
    step, driver = machine.open(), machine.driver
    # Every slice is another one: a buffer that is read too late or too early shows.
    batches = stack((2, 16, 8), (2, 16, 8), (2, 16, 8), (2, 16, 8))
    wanted = expected(machine.bundle, batches, 2)
    handles = count(1000)

    def run() -> bool:
        given: Any = batches
        if where == "device":
            given = [tuple(FakeArray(driver, a, stream=next(handles)) for a in pair) for pair in batches]
        found = list(step.flow(given, uniform_time_grid(2)))
        return all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))

    assert run()
    before = driver.calls.count(function)
    assert run()
    calls = driver.calls.count(function) - before
    assert calls >= len(batches)
    for which in range(calls):
        step = machine.open()
        run()
        skipping(driver, function, which)
        try:
            right = run()
        except Race:
            right = False
        assert not right, f"{function} number {which} is not needed, or the fake does not see that it is"
        driver.skip = lambda name, number: False


def test_uploads_overlap_the_computation_before(machine: Machine) -> None:
    # The second batch is on its streams before the host waits for the first.
    step, driver = machine.open(), machine.driver
    list(step.flow(VOLUME[:1], uniform_time_grid(1)))
    start = len(driver.calls)
    list(step.flow(VOLUME[:3], uniform_time_grid(1)))
    order = [name for name in driver.calls[start:] if name in ("cuGraphLaunch", "cuEventSynchronize")]
    start, collect = "cuGraphLaunch", "cuEventSynchronize"
    assert order == [start, start, collect, start, collect, collect]


def test_a_flow_that_is_left_does_not_spoil_the_next(machine: Machine) -> None:
    step = machine.open()
    flow = step.flow(VOLUME, uniform_time_grid(2))
    first = next(flow)
    with pytest.raises(TryAgainLater, match="at work on another scan"):
        next(step.flow(VOLUME, uniform_time_grid(1)))
    flow.close()  # type: ignore[attr-defined]
    wanted = expected(machine.bundle, VOLUME, 1)
    for one, other in zip(step.flow(VOLUME, uniform_time_grid(1)), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first, expected(machine.bundle, VOLUME[:1], 2)[0])


def test_an_error_of_the_source_passes_through(machine: Machine) -> None:
    def source() -> Iterator[tuple[Float32Array, Float32Array]]:
        yield VOLUME[0]
        raise InputRefused("no more")

    step = machine.open()
    with pytest.raises(InputRefused, match="no more"):
        list(step.flow(source(), uniform_time_grid(1)))
    assert len(list(step.flow(VOLUME, uniform_time_grid(1)))) == len(VOLUME)


def test_a_step_works_in_a_thread_that_did_not_open_it(machine: Machine) -> None:
    step = machine.open()
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(lambda: list(step.flow(VOLUME, uniform_time_grid(2)))).result()
        np.testing.assert_array_equal(found[-1], expected(machine.bundle, VOLUME[-1:], 2)[0])
        threads.submit(step.close).result()
    assert machine.left() == []


def test_a_context_that_is_current_is_taken(machine: Machine) -> None:
    machine.driver.cuCtxSetCurrent(5)
    machine.driver.calls.clear()
    machine.open()(*VOLUME[0], 0.0, 1.0)
    assert machine.driver.context == 5
    assert "cuDevicePrimaryCtxRetain" not in machine.driver.calls


# Failures


@pytest.mark.parametrize(
    "shape", [(5, 1, 8, 8), (1, 1, 8, 200), (1, 1, 12, 16), (1, 2, 8, 8), (1, 8, 8), (1, 1, 0, 8)], ids=str
)
def test_slices_outside_the_profile_are_refused(machine: Machine, shape: tuple[int, ...]) -> None:
    step = machine.open()
    zeros = np.zeros(shape, np.float32)
    with pytest.raises(InputRefused, match=r"the engine takes .* within 1x8x8,2x16x16,4x192x192, .* of 8: ") as refusal:
        step(zeros, zeros, 0.0, 1.0)
    assert str(refusal.value).endswith(
        "make one with another `lfmri export --trt --profile`, or run with --backend onnxruntime"
    )
    with pytest.raises(InputRefused):
        step(np.zeros((1, 1, 8, 8), np.float32), zeros, 0.0, 1.0)
    assert step(*VOLUME[0], 0.0, 1.0).shape == VOLUME[0][0].shape


def scenario(machine: Machine) -> TensorRtStep:
    step = machine.open()
    try:
        list(step.flow(VOLUME, uniform_time_grid(2)))
    except BaseException:
        step.close()
        raise
    return step


@pytest.mark.parametrize("error", [FULL, LOST], ids=["full", "lost"])
def test_wherever_the_device_fails_there_is_one_line_and_everything_is_freed(machine: Machine, error: Any) -> None:
    driver = machine.driver
    start = len(driver.calls)
    step = scenario(machine)
    total = len(driver.calls) - start
    step.close()
    assert machine.left() == []
    for which in range(total):
        begin = len(driver.calls)
        if error == LOST:  # from here on, every call fails
            driver.fail = lambda name, number, at=begin + which: LOST if number >= at else None
        else:
            driver.fail = lambda name, number, at=begin + which: FULL if number == at else None
        message = name = ""
        try:
            step = scenario(machine)
        except LfmriError as failure:
            message = str(failure)
        else:
            name = driver.calls[begin + which]
            step.close()
        driver.fail = lambda name, number: None
        assert "\n" not in message
        assert len(message) < 400
        assert not name or name in RELEASES, f"the error of {name} was not seen"
        assert machine.left() == [], driver.calls[begin + which]


def test_too_little_memory_for_one_shape_leaves_the_step_usable(machine: Machine) -> None:
    step, driver = machine.open(), machine.driver
    first = list(step.flow(VOLUME[:2], uniform_time_grid(1)))
    for function in ("cuMemAlloc", "cuMemHostAlloc", "cuGraphInstantiate"):
        driver.fail = lambda name, number, function=function: FULL if name == function else None
        with pytest.raises(TryAgainLater, match="too little free memory"):
            list(step.flow(VOLUME, uniform_time_grid(1)))
        driver.fail = lambda name, number: None
    np.testing.assert_array_equal(list(step.flow(VOLUME, uniform_time_grid(1)))[:2], first)
    step.close()
    assert not step.broken


def test_a_lost_device_closes_the_step(machine: Machine) -> None:
    step, driver = machine.open(), machine.driver
    flow = step.flow(VOLUME, uniform_time_grid(1))
    next(flow)
    driver.fail = lambda name, number: LOST
    with pytest.raises(TryAgainLater, match=r"the GPU failed .CUDA_ERROR_LAUNCH_FAILED"):
        next(flow)
    assert machine.left() == []
    with pytest.raises(TryAgainLater, match="closed"):
        step(*VOLUME[0], 0.0, 1.0)
    assert step.broken
    step.close()


@pytest.mark.parametrize("call", ["context", "shape", "address", "execute"])
@pytest.mark.parametrize("which", [0, 1, 5])
def test_wherever_tensorrt_fails_there_is_one_line_and_everything_is_freed(
    machine: Machine, call: str, which: int
) -> None:
    seen = count()
    machine.trt.state.fail = lambda name: name == call and next(seen) >= which
    if call == "context" and which == 5:
        which = 1  # there are three shapes
    with pytest.raises(TryAgainLater) as failure:
        scenario(machine)
    assert "\n" not in str(failure.value)
    del failure
    assert machine.left() == []


def no_device(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.fail = lambda name, number: real.CUresult.CUDA_ERROR_NO_DEVICE


def no_library_of_the_driver(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(flags: int) -> None:
        raise RuntimeError("libcuda.so.1 was\nnot found")

    monkeypatch.setattr(driver, "cuInit", init)


def no_bindings(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)


def no_tensorrt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


def closed(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    no_device(driver, monkeypatch)
    monkeypatch.setattr(cuda, "closed_gpu_files", lambda: ["/dev/nvmap"])


def wrong_driver(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.fail = lambda name, number: real.CUresult.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH


def no_engine(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(()))


def neither_engine_nor_tensorrt(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    no_engine(driver, monkeypatch)
    no_tensorrt(driver, monkeypatch)


def no_library(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    neither_engine_nor_tensorrt(driver, monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)


@pytest.mark.parametrize(
    ("missing", "match"),
    [
        (no_device, "no NVIDIA GPU is usable .CUDA_ERROR_NO_DEVICE."),
        (closed, "CUDA_ERROR_NO_DEVICE, /dev/nvmap is closed to this user.; .*: on a Jetson sudo usermod -aG video"),
        (wrong_driver, "no NVIDIA GPU is usable .CUDA_ERROR_SYSTEM_DRIVER_MISMATCH."),
        (no_library_of_the_driver, "no NVIDIA GPU is usable .libcuda.so.1 was not found."),
        (no_bindings, "pip install 'lfmri.trt.'"),
        (no_tensorrt, "tensorrt cannot be imported .* it comes with JetPack"),
        (no_engine, "no TensorRT engine of this bundle; make one here with `lfmri export --trt`"),
        (neither_engine_nor_tensorrt, "no TensorRT engine of this bundle; make one here"),  # TensorRT-RTX is here
        (no_library, "^no tensorrt_rtx, and tensorrt cannot be imported .*; it comes with .*--system-site-packages"),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_mends_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, missing: Any, match: str
) -> None:
    missing(machine.driver, monkeypatch)
    with pytest.raises(BackendMissing, match=match):
        machine.open()


@pytest.mark.parametrize("status", ["SYSTEM_NOT_READY", "NOT_PERMITTED", "OPERATING_SYSTEM", "UNKNOWN"])
def test_a_gpu_that_does_not_answer_may_do_so_later(machine: Machine, status: str) -> None:
    error = getattr(real.CUresult, f"CUDA_ERROR_{status}")
    machine.driver.fail = lambda name, number: error if name == "cuInit" else None
    with pytest.raises(TryAgainLater, match=f"no NVIDIA GPU is usable .CUDA_ERROR_{status}."):
        machine.open()
    machine.driver.fail = lambda name, number: None
    machine.open().close()


# The fake


def test_the_fake_has_no_member_that_the_real_libraries_lack() -> None:
    for kind in KINDS:
        real_members = set().union(*(members(version, kind.__name__) for version in ("10", "11", "rtx")))
        named = {name for name in vars(kind) if not name.startswith("_")}
        if isinstance(kind, EnumMeta):
            named = set(kind.__members__)
        assert named <= real_members, kind.__name__
    for name in vars(FakeDriver):
        if name.startswith("cu"):
            assert hasattr(real, name)
