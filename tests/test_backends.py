"""Every back end that runs here gives what the reference gives, as it was asked to, and sends nothing."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from lfmri import options
from lfmri_export.graph import export_step
from lfmri_runtime import backends, machine
from lfmri_runtime.backends import BACKENDS, PRECISIONS, Step, open_backend, openvino, openvino_cache
from lfmri_runtime.backends.onnxruntime_cuda import CudaStep
from lfmri_runtime.backends.openvino_library import import_openvino, rehearse
from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BackendMissing, BundleRefused, LfmriError, TryAgainLater, UsageError
from lfmri_runtime.golden import failures, measure_parity, read_golden
from lfmri_runtime.metrics import psnr
from lfmri_runtime.sampler import uniform_time_grid
from lfmri_trainer.network.presets import build_network

from .bundles import MakeBundle, numpy_euler, seal, write_bundle
from .heads import scan_of
from .masks import MaskedCore

Float32Array = NDArray[np.float32]
#: Largest difference from the loop in float64, by precision; values are about 1.
ROUNDING = {"float32": 1e-5, "bfloat16": 4e-2}
needs_bfloat16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(machine.cpu()["features"]), reason="this CPU has no bfloat16 arithmetic"
)
EXACT = (("onnxruntime", "float16"), ("openvino", "float32"))
BFLOAT16 = pytest.param("bfloat16", marks=needs_bfloat16)


class BoundOnCpu(CudaStep):
    """The GPU's loop with its buffers in the host's memory."""

    asked = "CPUExecutionProvider"
    device = "cpu"


def opened(name: str, bundle: Bundle, precision: str, tmp_path: Path) -> Step:
    if name == "bound":
        return BoundOnCpu(bundle, threads=1)
    return open_backend(bundle, name, precision=precision, threads=2, cache=tmp_path)


@pytest.fixture(scope="module")
def noisy(make_bundle: MakeBundle) -> Bundle:
    return open_bundle(make_bundle("noisy"))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("counts", [(2,), (2, 2, 2, 1), (3, 3, 3, 3, 3, 2)])
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("onnxruntime", "float32"),
        ("bound", "float32"),
        ("openvino", "float32"),
        pytest.param("openvino", "bfloat16", marks=needs_bfloat16),
    ],
)
def test_the_loop_over_a_stream_gives_every_batch_in_order(
    noisy: Bundle, tmp_path: Path, name: str, precision: str, counts: tuple[int, ...], steps: int
) -> None:
    step = opened(name, noisy, precision, tmp_path)
    rng = np.random.default_rng(1)
    stream = [(rng.standard_normal((n, 1, 16, 24), np.float32), rng.random((n, 1, 16, 24), np.float32)) for n in counts]
    found = list(step.flow(iter(stream), uniform_time_grid(steps)))
    assert [x_1.shape for x_1 in found] == [y.shape for _, y in stream]
    for (x_0, y), x_1 in zip(stream, found, strict=True):
        expected = numpy_euler(x_0, y, share=0.1, steps=steps)
        np.testing.assert_allclose(x_1, expected, atol=ROUNDING[precision])
    assert step.seconds > 0
    assert (step.name, step.precision) == (type(step).name, precision)
    assert list(step.flow(iter([]), uniform_time_grid(steps))) == []
    step.warmup((1, 1, 8, 8))
    assert step.seconds == 0
    step.close()


@pytest.mark.parametrize("name", ["onnxruntime", "bound", "openvino"])
def test_one_step_is_that_of_the_loop(noisy: Bundle, tmp_path: Path, name: str) -> None:
    step = opened(name, noisy, "float32", tmp_path)
    x_t = np.random.default_rng(2).standard_normal((2, 1, 8, 16), np.float32)
    (expected,) = step.flow(iter([(x_t, x_t)]), uniform_time_grid(2))
    found = x_t
    for t, t_next in pairwise((0.0, 0.5, 1.0)):
        found = step(found, x_t, t, t_next - t)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("said", "match", "broken"),
    [
        ("CUDA failure 700: an illegal\nmemory access", r"the GPU failed .CUDA failure 700: an illegal memory", True),
        ("Failed to allocate memory for requested buffer", "too little free memory", False),
    ],
)
@pytest.mark.parametrize("call", ["flow", "step"])
def test_what_fails_on_the_gpu_is_said_in_one_line(
    noisy: Bundle, call: str, said: str, match: str, broken: bool
) -> None:
    class Failing:
        def fail(self, *_: object) -> None:
            raise RuntimeException(said)

        run = io_binding = fail

    step, x = BoundOnCpu(noisy, threads=1), np.zeros((1, 1, 8, 8), np.float32)
    assert not step.broken
    step._session = Failing()
    with pytest.raises(TryAgainLater, match=match):
        list(step.flow([(x, x)], uniform_time_grid(1))) if call == "flow" else step(x, x, 0.0, 1.0)
    assert step.broken is broken


@pytest.mark.parametrize(
    ("said", "kind"), [("Failed to allocate memory", TryAgainLater), ("Got invalid dimensions", RuntimeException)]
)
def test_a_cpu_without_memory_may_do_better_later(noisy: Bundle, said: str, kind: type[Exception]) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeException(said)

    step, x = open_backend(noisy, threads=1), np.zeros((1, 1, 8, 8), np.float32)
    step._session = Failing()  # type: ignore[attr-defined]
    with pytest.raises(kind):
        step(x, x, 0.0, 1.0)


def test_openvino_compiles_for_the_first_scan_when_it_is_warmed(noisy: Bundle, tmp_path: Path) -> None:
    step = open_backend(noisy, "openvino", precision="float32", threads=2, cache=tmp_path)
    assert isinstance(step, openvino.OpenVinoStep)
    step.warmup((4, 1, 16, 24))
    assert step.seconds == 0
    compiled = dict(step._models)
    x = np.zeros((4, 1, 16, 24), np.float32)
    assert len(list(step.flow([(x, x)] * 5, uniform_time_grid(2)))) == 5
    assert dict(step._models) == compiled


def test_a_stream_is_read_no_further_ahead_than_what_runs(noisy: Bundle, tmp_path: Path) -> None:
    step = opened("openvino", noisy, "float32", tmp_path)
    read = 0

    def stream() -> Iterator[tuple[Float32Array, Float32Array]]:
        nonlocal read
        for _ in range(20):
            read += 1
            yield (np.zeros((1, 1, 8, 8), np.float32),) * 2

    results = step.flow(stream(), uniform_time_grid(1))
    for done, _ in enumerate(results, start=1):
        assert read <= done + openvino.MAX_STREAMS


def test_the_core_is_the_same_on_openvino(noisy: Bundle) -> None:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    expected = Enhancer(noisy, threads=1).enhance(data, affine, steps=2, seed=4)
    found = Enhancer(noisy, backend="openvino", precision="float32", batch=3).enhance(data, affine, steps=2, seed=4)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5 * expected.scale)
    assert found.report["backend"]["name"] == "openvino"
    assert found.report["backend"]["precision"] == "float32"
    assert found.notes == ()


@pytest.fixture(scope="module")
def aware_of_time(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network of random weights on which the time tells four times as much as at the start of a training."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = build_network("iqt-cfm").eval()
        for name, weights in network.named_parameters():
            if ".time." in name:
                weights *= 4
    graph = onnx.load_from_string(export_step(network, prediction="velocity"))
    return open_bundle(write_bundle(tmp_path_factory.mktemp("time") / "bundle", model=graph, prediction="velocity"))


@needs_bfloat16
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.8])
def test_bfloat16_knows_the_time_at_every_step(aware_of_time: Bundle, tmp_path: Path, t: float) -> None:
    """With its own time embedding it is off by 3 to 6 % of the spread at t > 0, by 2 % at 0."""
    x, y = np.random.default_rng(0).standard_normal((2, 1, 1, 64, 64)).astype(np.float32)
    expected, found = (
        opened(name, aware_of_time, precision, tmp_path)(x, y, t, 1 - t)
        for name, precision in (("onnxruntime", "float32"), ("openvino", "bfloat16"))
    )
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.025 * (expected - x).std()


@pytest.mark.parametrize("precision", ["float32", BFLOAT16])
def test_the_built_in_model_passes_its_golden_check_on_openvino(precision: str, tmp_path: Path) -> None:
    bundle = open_bundle()
    rows = measure_parity(opened("openvino", bundle, precision, tmp_path), read_golden(bundle))
    assert [row.steps for row in rows] == list(bundle.contract.steps)
    assert failures(rows) == []
    assert all((row.psnr or 0) > {"float32": 75, "bfloat16": 55}[precision] for row in rows)


def test_openvino_in_float32_is_exact_at_the_size_of_real_slices(tmp_path: Path) -> None:
    x_t, y = np.random.default_rng(3).random((2, 1, 1, 184, 72), np.float32)
    bundle = open_bundle()
    expected, found = (opened(name, bundle, p, tmp_path)(x_t, y, 0.2, 0.8) for name, p in EXACT)
    assert psnr(found, expected) > 95


# What OpenVINO compiled


def test_what_openvino_compiled_is_loaded_again_and_damage_is_not(
    noisy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    library = import_openvino()
    real = library.Core

    class Counted(MaskedCore):
        def compile_model(self, *given: Any) -> Any:
            compiled.append(given)
            return super().compile_model(*given)

    rehearse(library)
    capabilities = real().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    monkeypatch.setattr(library, "Core", lambda: Counted(real(), capabilities=capabilities))
    x = np.random.default_rng(4).random((1, 1, 8, 16), np.float32)

    def once() -> tuple[int, Float32Array]:
        compiled.clear()
        result = opened("openvino", noisy, "float32", tmp_path)(x, x, 0.0, 0.5)
        return len(compiled), result

    count, expected = once()
    assert count == 1
    (path,) = tmp_path.rglob("*.compiled")
    whole = path.read_bytes()
    assert once()[0] == 0
    for damaged in (whole[:-1], whole[:100], b"", bytes([*whole[:-1], whole[-1] ^ 1])):
        path.write_bytes(damaged)
        count, found = once()
        assert count == 1, "damage was not seen"
        np.testing.assert_array_equal(found, expected)
        assert path.read_bytes()[:32] == hashlib.sha256(path.read_bytes()[32:]).digest()
    path.unlink()
    path.mkdir()
    assert once()[0] == 1, "what cannot be written costs time alone"


def test_no_more_is_kept_than_the_last_that_were_used(
    noisy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_cache, "MAX_KEPT", 3)
    for side in (8, 16, 24, 32, 40):
        opened("openvino", noisy, "float32", tmp_path).warmup((1, 1, 8, side))
    assert len(list(tmp_path.rglob("*.compiled"))) == 3


@pytest.mark.parametrize("said", ["Failed to allocate 2147483648 bytes of memory", "std::bad_alloc"])
@pytest.mark.parametrize("call", ["flow", "step"])
def test_openvino_without_memory_may_do_better_later(
    noisy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, call: str
) -> None:
    step, x = opened("openvino", noisy, "float32", tmp_path), np.zeros((1, 1, 8, 8), np.float32)

    def infer(*_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(openvino.Parts, "infer", infer)
    with pytest.raises(TryAgainLater, match="too little free memory"):
        list(step.flow([(x, x)], uniform_time_grid(1))) if call == "flow" else step(x, x, 0.0, 1.0)


# Nothing but what was asked


@pytest.mark.parametrize(
    ("name", "precision", "match"),
    [
        ("tensor", None, "--backend is 'tensor'; expected one of auto, onnxruntime"),
        ("onnxruntime", "bfloat16", "onnxruntime runs this bundle in float32; --precision asked for bfloat16"),
        ("openvino", "float16", "openvino runs this bundle in float32 or bfloat16"),
    ],
)
def test_a_name_that_is_not_offered_is_refused(noisy: Bundle, name: str, precision: str | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        open_backend(noisy, name, precision=precision)


def test_a_cpu_build_is_not_taken_for_cuda(noisy: Bundle) -> None:
    with pytest.raises(BackendMissing, match="pip install onnxruntime-gpu"):
        open_backend(noisy, "onnxruntime-cuda")


def test_a_provider_that_falls_back_silently_is_refused(noisy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda content, options, providers, enable_fallback: real(content, options)
    )  # what the GPU build does where the driver is missing
    with pytest.raises(BackendMissing, match="asked for CUDAExecutionProvider and runs on CPUExecutionProvider"):
        open_backend(noisy, "onnxruntime-cuda")


@pytest.mark.parametrize(
    ("raised", "expected", "match"),
    [
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), TryAgainLater, "too little free memory"),
        (
            RuntimeError("CUDA failure 35: driver version\nis insufficient"),
            BackendMissing,
            "cannot start .CUDA failure 35",
        ),
        (type("InvalidGraph", (Exception,), {})("no such op"), BundleRefused, "cannot be loaded .no such op"),
    ],
)
def test_a_provider_that_does_not_open_is_not_taken_for_a_bad_graph(
    noisy: Bundle, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[LfmriError], match: str
) -> None:
    create = onnxruntime.InferenceSession._create_inference_session

    def cannot_start(session: object, providers: list[object], *rest: object) -> None:
        if providers and providers != ["CPUExecutionProvider"]:
            raise raised
        create(session, providers, *rest)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", cannot_start)
    with pytest.raises(expected, match=match):
        open_backend(noisy, "onnxruntime-cuda")


def test_cuda_computes_float32_in_full_and_picks_its_kernels_by_rule(
    noisy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, str]]] = []
    real = onnxruntime.InferenceSession

    def session(
        content: bytes, options: object, providers: list[tuple[str, dict[str, str]]], enable_fallback: bool
    ) -> object:
        asked.extend(providers)
        return real(content, options)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BackendMissing):
        open_backend(noisy, "onnxruntime-cuda")
    open_backend(noisy)
    assert asked == [
        ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        ("CPUExecutionProvider", {}),
    ]


@pytest.mark.parametrize(
    ("capabilities", "match"),
    [(["FP32"], "no bfloat16 arithmetic"), (["FP32", "BF16"], "was asked for bf16 and runs in f32")],
)
def test_bfloat16_is_not_imitated(
    noisy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: list[str], match: str
) -> None:
    library = import_openvino()
    core = library.Core
    monkeypatch.setattr(library, "Core", lambda: MaskedCore(core(), capabilities=capabilities, hint="f32"))
    with pytest.raises(BackendMissing, match=match):
        opened("openvino", noisy, "bfloat16", tmp_path).warmup((1, 1, 8, 8))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_bytes_that_are_no_graph_are_refused(make_bundle: MakeBundle, tmp_path: Path, name: str) -> None:
    folder = make_bundle()
    (folder / "step.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleRefused, match=r"step\.onnx cannot be loaded"):
        opened(name, open_bundle(seal(folder)), "float32", tmp_path)


def test_a_missing_library_names_its_extra(noisy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendMissing, match=r"pip install 'lfmri\[openvino\]'"):
        open_backend(noisy, "openvino")


def test_a_back_end_that_is_not_part_of_this_build_is_missing(noisy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", ("elsewhere",))
    with pytest.raises(BackendMissing, match="elsewhere is not part of this lfmri"):
        open_backend(noisy, "elsewhere")


def test_the_command_line_offers_what_the_runtime_has() -> None:
    assert options.BACKENDS == BACKENDS
    assert options.PRECISIONS == PRECISIONS


# Nothing is sent

USE = """
import socket, sys
def refuse(*a, **k): raise AssertionError("a socket was asked for")
socket.socket.connect = refuse
from pathlib import Path
from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import open_bundle
open_backend(open_bundle(Path(sys.argv[1])), sys.argv[2]).warmup((1, 1, 8, 8))
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry  # and who else wants it still finds it
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_no_library_reports_to_its_maker(noisy: Bundle, tmp_path: Path, name: str) -> None:
    """ONNX Runtime would leave an identifier and a queue in the cache; under CI it keeps still by itself."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(noisy.path), name], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"lfmri"}


def test_a_signal_is_handled_after_models_of_openvino_have_come_and_gone(make_bundle: MakeBundle) -> None:
    program = f"""
import os, signal
from pathlib import Path
from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import open_bundle

bundle = open_bundle(Path({str(make_bundle())!r}))
steps = [open_backend(bundle, "openvino") for _ in range(2)]
for step in steps:
    step.warmup((1, 1, 16, 16))
del step
while steps:
    steps.pop(0).close()
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr[-2000:]


def test_the_first_inferences_of_a_process_may_run_side_by_side(make_bundle: MakeBundle) -> None:
    program = f"""
import sys
from pathlib import Path
import numpy as np
from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.sampler import uniform_time_grid

sys.setswitchinterval(1e-7)  # threads take turns as often as can be, which showed the deadlock in one run of ten
step = open_backend(open_bundle(Path({str(make_bundle())!r})), "openvino")
x = np.zeros((1, 1, 16, 16), np.float32)
assert len(list(step.flow([(x, x)] * 4, uniform_time_grid(1)))) == 4
"""
    for _ in range(8):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
