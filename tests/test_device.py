"""doctor, verify and bench: what they say of this machine, and of machines that are less than it."""

import ctypes
import dataclasses
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lfmri.cli import run
from lfmri_export.eager import EagerStep
from lfmri_runtime import machine
from lfmri_runtime.backends.onnxruntime import OnnxRuntimeStep
from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.device import cold, doctor
from lfmri_runtime.device import verify as acceptance
from lfmri_runtime.device.bench import bench
from lfmri_runtime.device.energy import EnergyMeter, _power_sensors, _watts
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BundleRefused, TryAgainLater
from lfmri_runtime.golden import failures, measure_parity, read_golden

from .bundles import MakeBundle
from .fake_machine import Machine

Float32Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Bundle:
    return open_bundle(make_bundle("noisy"))


# verify


class Faulty(OnnxRuntimeStep):
    """The reference with one fault, by the module's global `FAULT`."""

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        for x_1 in super().flow(batches, time_grid):
            yield self.spoil(x_1)

    def spoil(self, x_1: Float32Array) -> Float32Array:
        return x_1


class Wrong(Faulty):
    def spoil(self, x_1: Float32Array) -> Float32Array:
        return x_1 + np.float32(0.02)


class BatchBound(Faulty):
    def spoil(self, x_1: Float32Array) -> Float32Array:
        return x_1 + np.float32(0.002 * (len(x_1) > 2))


class Restless(Faulty):
    calls = 0

    def spoil(self, x_1: Float32Array) -> Float32Array:
        self.calls += 1
        return x_1 + np.float32(1e-6 * self.calls)


class Leaking(Faulty):
    kept: list[mmap.mmap]

    def spoil(self, x_1: Float32Array) -> Float32Array:
        pages = mmap.mmap(-1, 100_000)  # fresh ones: the heap may have room that other tests left
        pages.write(b"x" * 100_000)
        self.kept = [*getattr(self, "kept", []), pages]
        return x_1


def opened(path: Path, kind: type[OnnxRuntimeStep]) -> Enhancer:
    bundle = open_bundle(path)
    return Enhancer(bundle, step=kind(bundle, threads=1))


@pytest.mark.parametrize(
    ("kind", "failed"),
    [
        (Faulty, set()),
        (Wrong, {f"against PyTorch, {steps} steps: PSNR" for steps in (1, 2, 5)}),
        (BatchBound, {"batch 3 against 2: PSNR", "batch 4 against 2: PSNR"}),
        (Restless, {"the same run again"}),
        (Leaking, {"growth of memory over 40 volumes"}),
    ],
)
def test_verify_finds_the_fault_and_no_other(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: type[OnnxRuntimeStep], failed: set[str]
) -> None:
    fresh = partial(cold.open_enhancer, bundle.path, "onnxruntime", None, threads=1)
    monkeypatch.setattr(acceptance, "open_enhancer", lambda *args, **options: opened(bundle.path, kind))
    monkeypatch.setattr(acceptance, "cold_start", lambda opener, scan: cold.cold_start(fresh, scan))
    document = acceptance.verify(bundle, "onnxruntime", None, threads=1, volumes=40)
    found = {check["name"] for check in document["checks"] if not check["passed"]}
    assert {name for name in found if "LPIPS" not in name and "SSIM" not in name} == failed
    assert document["verdict"] == ("failed" if failed else "passed")
    assert len(document["checks"]) == 3 * 3 + 3 + 1 + 1 + 1
    text = acceptance.page(document)
    assert text.count("**failed**") == len(found)
    assert bundle.sha256 in text
    assert acceptance.signature(document) == document["signed_off"]
    again = json.loads(json.dumps(document))
    assert acceptance.signature(again) == document["signed_off"]
    again["checks"][0]["figure"] = 99.0
    assert acceptance.signature(again) != document["signed_off"]


@pytest.mark.parametrize(
    ("resident", "slope"),
    [
        ([500 + 0.5 * number for number in range(40)], 0.5),
        ([500.0] * 18 + [532.0] * 22, 0.0),
        ([500.0 + 3 * (number // 3) for number in range(40)], 1.0),
    ],
)
def test_a_jump_of_the_allocator_is_no_leak(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, resident: list[float], slope: float
) -> None:
    readings = iter(resident)
    monkeypatch.setattr(acceptance, "resident_mib", lambda: next(readings))
    enhancer = opened(bundle.path, Faulty)
    (check,) = acceptance._memory(enhancer, lambda line: None, volumes=40)
    assert check.figure == pytest.approx(slope)
    assert check.passed == (slope == 0)


@pytest.mark.parametrize("leak", [0, 1 << 20])
def test_on_a_gpu_its_memory_is_watched_and_its_name_is_signed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leak: int
) -> None:
    fake = Machine(monkeypatch, bundle, tmp_path, "11")
    fake.build()
    fake.driver.leak = leak
    cold_figures = cold.ColdStart(open_seconds=1.0, first_seconds=1.0, peak_mib=500.0, gpu_mib=None)
    monkeypatch.setattr(acceptance, "open_enhancer", lambda *args, **options: Enhancer(bundle, step=fake.open()))
    monkeypatch.setattr(acceptance, "cold_start", lambda opener, scan: cold_figures)
    monkeypatch.setattr(acceptance, "resident_mib", lambda: 500.0)
    document = acceptance.verify(bundle, "tensorrt", None, volumes=20)
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["growth of memory over 20 volumes"]["passed"]
    assert checks["growth of GPU memory over 20 volumes"]["passed"] == (not leak)
    assert (document["verdict"] == "passed") == (not leak)
    assert "- GPU: Fake GPU, compute capability 8.7, 16 multiprocessors (driver " in acceptance.page(document)


def test_what_closing_gives_back_is_what_it_held(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Machine(monkeypatch, bundle, tmp_path, "11")
    fake.build()
    step = fake.open()
    step.warmup((2, 1, 192, 192))
    held = sum(array.nbytes for array in fake.driver.memory.values())
    assert cold._given_back(step) == held / 2**20 > 1
    assert cold._given_back(OnnxRuntimeStep(bundle, threads=1)) is None


def test_values_that_are_not_finite_fail(bundle: Bundle) -> None:
    class Burst(Faulty):
        def spoil(self, x_1: Float32Array) -> Float32Array:
            return x_1 * np.float32(np.nan)

    rows = measure_parity(Burst(bundle), read_golden(bundle))
    assert len(failures(rows)) == len(rows) == 3
    assert "not finite" in str(rows[0])
    assert not acceptance.Check(name="", unit="", figure=None, least=0.0).passed


def test_a_process_that_dies_at_the_start_is_told(bundle: Bundle) -> None:
    with pytest.raises(TryAgainLater, match="ended without a result"):
        cold.cold_start(partial(os._exit, 1), (np.zeros((1, 1, 1), np.float32), np.eye(4)))  # type: ignore[arg-type]


def test_verify_as_a_command(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(acceptance.verify, "__kwdefaults__", acceptance.verify.__kwdefaults__ | {"volumes": 4})
    monkeypatch.setattr(acceptance, "resident_mib", lambda: 500.0)  # this process also holds the other tests' memory
    command = [
        "verify",
        "--bundle",
        str(bundle.path),
        "--backend",
        "openvino",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert run(command) == 0
    document = json.loads((tmp_path / "verify.json").read_text())
    assert document["backend"]["name"] == "openvino"
    assert document["signed_off"] in (tmp_path / "verify.md").read_text()
    monkeypatch.setattr(acceptance, "LONGEST_COLD_START", 0.0)
    assert run(command) == 4
    assert "failed: cold start to the first small volume" in capfd.readouterr().err
    assert json.loads((tmp_path / "verify.json").read_text())["verdict"] == "failed"
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert run(command) == 5
    assert "lfmri[evaluate]" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [], "no earlier verdict stays"


# bench


def test_the_weights_in_a_bundle_make_pytorch_sample_as_it_did() -> None:
    bundle = open_bundle()
    golden = read_golden(bundle)
    short = dataclasses.replace(golden, results={1: golden.results[1]})
    (row,) = measure_parity(EagerStep(bundle, threads=1), short)
    assert row.psnr is not None
    assert row.psnr > 75


@pytest.mark.parametrize("network", ["none", "iqt-cfm"])
def test_pytorch_refuses_a_graph_that_is_no_preset(make_bundle: MakeBundle, network: str) -> None:
    with pytest.raises(BundleRefused, match=r"is no preset|does not hold the weights"):
        EagerStep(open_bundle(make_bundle(network=network)))


class Slow(Faulty):
    def spoil(self, x_1: Float32Array) -> Float32Array:
        time.sleep(0.02 * len(x_1))
        return x_1


def test_bench_measures_in_turn(bundle: Bundle, make_nifti: Callable[..., Path]) -> None:
    openers = {"fast": partial(opened, bundle.path, OnnxRuntimeStep), "slow": partial(opened, bundle.path, Slow)}
    figures = bench(openers, make_nifti(), rounds=3, steps=2)
    fast, slow = (figures["contestants"][name] for name in openers)
    assert slow["slice_s"]["p50"] >= 0.02 > fast["slice_s"]["p50"]
    assert slow["volume_s"]["p50"] > fast["volume_s"]["p50"] > sum(fast["stages_s"].values()) * 0.5
    ratio = figures["ratios"]["slow"]
    assert ratio["most"] >= ratio["median"] >= ratio["least"] > 1
    # What the slow one waits is outside of the library's calls here, so it counts as ours.
    assert slow["own_share"]["p50"] > 0.5
    for contestant in (fast, slow):
        assert contestant["golden"] == {"passed": True, "least_psnr_db": pytest.approx(150, abs=51)}
        assert contestant["cold_start_s"] > 0
        assert contestant["peak_memory_mib"] > 30
        assert contestant["gpu_memory_mib"] is None
        assert (contestant["energy_j"] is None) == (figures["energy"] == "not reported")
    json.dumps(figures, allow_nan=False)


def test_bench_as_a_command(
    bundle: Bundle, make_nifti: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scan, out = str(make_nifti()), tmp_path / "bench.json"
    command = ["bench", "--bundle", str(bundle.path), "--scan", scan, "--rounds", "1", "--threads", "1"]
    assert run([*command, "--compare", "openvino:float32", "onnxruntime", "--json", str(out)]) == 0
    assert "openvino:float32 is " in capfd.readouterr().out
    assert set(json.loads(out.read_text())["contestants"]) == {"openvino:float32", "onnxruntime:float32"}
    for names, code, said in (
        (("onnxruntime", "onnxruntime:float32"), 2, "which are one back end here"),
        (("onnxruntime", "fastest"), 2, "'fastest' cannot be measured"),
        (("onnxruntime", "tensorrt"), 5, "tensorrt does not pass here"),
        (("onnxruntime", "pytorch"), 4, "is no preset"),
    ):
        assert run([*command, "--compare", *names]) == code
        assert said in capfd.readouterr().err


def sysfs(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_energy_of_counters_wraps_round_their_range(tmp_path: Path) -> None:
    rapl = "class/powercap/intel-rapl:{}/"
    root = sysfs(
        tmp_path,
        {
            rapl.format(0) + "energy_uj": "9000000\n",
            rapl.format(0) + "max_energy_range_uj": "10000000",
            rapl.format(1) + "energy_uj": "5",
            rapl.format(0) + "name": "package-0\n",
            rapl.format(1) + "name": "package-1\n",
            rapl.format("0:0") + "energy_uj": "1",  # a part of the first, counted there
            rapl.format("0:0") + "name": "core\n",
            rapl.format(2) + "energy_uj": "7",  # the platform, which the packages are a part of
            rapl.format(2) + "name": "psys\n",
            "class/powercap/intel-rapl-mmio:0/energy_uj": "9000000",  # the first once more
            "class/powercap/intel-rapl-mmio:0/name": "package-0\n",
        },
    )
    with EnergyMeter(root) as meter:
        sysfs(root, {rapl.format(0) + "energy_uj": "1000000", rapl.format(1) + "energy_uj": "500005"})
    assert meter.joules == pytest.approx(2.5)
    assert meter.source == "the CPU package alone, counters: intel-rapl:0, intel-rapl:1"


def rails(root: Path, names: Iterable[str]) -> Path:
    """A chip with a rail for each name: the first of 5 V and 1 A, the next of 5 V and 2 A, and so on."""
    for number, name in enumerate(names, start=1):
        about = {"in{}_label": f"{name}\n", "in{}_input": "5000", "curr{}_input": f"{1000 * number}"}
        sysfs(root, {f"class/hwmon/hwmon3/{file.format(number)}": content for file, content in about.items()})
    return root


AGX = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")


@pytest.mark.parametrize(
    ("names", "watts"),
    [
        (AGX, 5.0 + 10.0 + 15.0),
        ((*AGX[:3], "VDD_IN"), 20.0),
        (("VDD_CPU_GPU_CV", "VDD_SOC", "VDD_IN"), 15.0),
        (AGX[1:], 0.0),  # a part is not the module
    ],
)
def test_the_power_of_a_jetson_is_its_whole_modules(tmp_path: Path, names: Iterable[str], watts: float) -> None:
    found = sum(_watts(*sensor) for sensor in _power_sensors(rails(tmp_path, names)))
    assert found == pytest.approx(watts)


def test_energy_of_a_jetson_is_sampled(tmp_path: Path) -> None:
    root = rails(tmp_path, ["VDD_IN"])
    start = time.perf_counter()
    with EnergyMeter(root) as meter:
        while not meter.joules and time.perf_counter() - start < 60:
            time.sleep(0.05)
    assert 0 < (meter.joules or 0) <= 5 * (time.perf_counter() - start)


def test_energy_is_not_invented(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path) as meter:
        pass
    assert (meter.joules, meter.source) == (None, "not reported")


# doctor and machine


def test_doctor_mends_what_is_not_usable(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(["doctor", "--json"]) == 0
    findings = {entry["subject"]: entry for entry in json.loads(capfd.readouterr().out)}
    assert findings["bundle"]["found"].startswith("iqt-cfm-t1w")
    assert findings["back end onnxruntime, float16"]["usable"] is True
    assert findings["back end openvino, bfloat16"] == {
        "subject": "back end openvino, bfloat16",
        "usable": False,
        "found": "OpenVINO is not installed; it comes with",
        "mend": "pip install 'lfmri[openvino]'",
    }
    assert all(entry["mend"] for entry in findings.values() if not entry["usable"])
    assert run(["doctor"]) == 0
    assert "pip install 'lfmri[openvino]'" in capfd.readouterr().out


def test_doctor_survives_a_bundle_that_is_refused_and_a_cache_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    findings = {entry.subject: entry for entry in doctor.examine(tmp_path)}
    assert not findings["bundle"].usable
    assert "lfmri export" in findings["bundle"].found + findings["bundle"].mend
    assert not findings["cache"].usable
    assert not [subject for subject in findings if subject.startswith("back end")]


class Driver:
    """A CUDA driver that answers."""

    def __init__(self, code: int) -> None:
        self.code = code

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - the driver's name
        count._obj.value = 1
        return 0

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802 - the driver's name
        number._obj.value = 13020
        return 0


@pytest.mark.parametrize(("code", "usable", "found"), [(0, True, "CUDA 13.2, 1 GPUs"), (803, False, "error 803")])
def test_doctor_asks_the_driver(monkeypatch: pytest.MonkeyPatch, code: int, usable: bool, found: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(code))
    finding = doctor._driver()
    assert (finding.usable, found in finding.found) == (usable, True)


def test_doctor_names_the_file_that_this_user_may_not_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nvmap", "nvidia0", "nvidiactl", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name not in ("nvmap", "null"))
    assert machine.closed_gpu_files(tmp_path) == [str(tmp_path / "nvmap")]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(100))
    monkeypatch.setattr(doctor, "closed_gpu_files", lambda: machine.closed_gpu_files(tmp_path))
    assert "nvmap: on a Jetson sudo usermod -aG video" in doctor._driver().mend


def test_doctor_says_where_tensorrt_comes_from(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Machine(monkeypatch, bundle, tmp_path, "11")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "lfmri export --trt" in doctor._backend(bundle, "tensorrt", "float32", 1).mend
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    finding = doctor._backend(bundle, "tensorrt", "float32", 1)
    assert finding.found.startswith("no tensorrt_rtx, and tensorrt cannot be imported (")
    assert finding.mend.startswith("it comes with JetPack, into an environment made by python3 -m venv --system-site")


def test_a_jetson_and_a_gpu_are_known_by_their_files(tmp_path: Path) -> None:
    root = sysfs(
        tmp_path,
        {
            "cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimdhp\n\nprocessor\t: 1\nFeatures\t: other\n",
            "device-tree/model": "NVIDIA Jetson AGX Orin\0",
            "driver/nvidia/version": "NVRM version: NVIDIA UNIX Kernel Module  540.4.0  Release Build\nGCC",
            "driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX A2000\nIRQ: 1\n",
            "meminfo": "MemTotal:       16777216 kB\n",
            "self/status": "VmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\n",
        },
    )
    assert machine.cpu(root)["name"] == "NVIDIA Jetson AGX Orin"
    assert machine.cpu(root)["features"] == ["asimd", "asimdhp"]
    assert machine.gpus(root) == ["NVIDIA RTX A2000 (driver 540.4.0)"]
    assert machine.memory_gib(root) == 16
    assert (machine.resident_mib(proc=root), machine.resident_mib(peak=True, proc=root)) == (1, 2)
    assert machine.gpus(tmp_path / "nowhere") == []


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
def test_the_device_is_accepted(backend: str) -> None:
    document = acceptance.verify(open_bundle(), backend, None)
    assert document["verdict"] == "passed", acceptance.page(document)
