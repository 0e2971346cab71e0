"""`auto` takes the fastest back end that is right here, says what it could not take, and remembers."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from lfmri.cli import run
from lfmri_runtime import choice, trial
from lfmri_runtime import machine as machine_module
from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.backends.onnxruntime import OnnxRuntimeStep
from lfmri_runtime.backends.openvino_library import import_openvino
from lfmri_runtime.bundle import STEP, Bundle, open_bundle
from lfmri_runtime.choice import choose
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BackendMissing, BundleRefused, InputRefused, TryAgainLater
from lfmri_runtime.trial import TRIAL_SHAPE

from .bundles import MakeBundle, seal
from .masks import MaskedCore

Float32Array = NDArray[np.float32]


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Bundle:
    return open_bundle(make_bundle("noisy"))


class Stand(OnnxRuntimeStep):
    """The reference under another name, with a fault: an offset, or an error on slices of one side."""

    alive: ClassVar[list["Stand"]] = []

    def __init__(self, bundle: Bundle, name: str, precision: str, *, fault: "float | tuple[int, Exception]") -> None:
        super().__init__(bundle, threads=1)
        self.name, self.precision, self._fault = name, precision, fault
        self.alive.append(self)

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        for x_1 in super().flow(batches, time_grid):
            if not isinstance(self._fault, tuple):
                yield x_1 + np.float32(self._fault)
                continue
            side, error = self._fault
            if x_1.shape[-1] == side:
                raise error
            yield x_1

    def close(self) -> None:
        self.alive.remove(self)
        super().close()


Fault = float | Exception | tuple[int, Exception]
GOLDEN_SIDE, TRIAL_SIDE = 64, TRIAL_SHAPE[-1]
TIME = trial._time


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A machine with these back ends, a fault each, and how long a slice takes (None: timed); notes what is opened."""
    Stand.alive.clear()

    def make(faults: dict[str, Fault], seconds: dict[str, float] | None = None) -> list[str]:
        opened: list[str] = []

        def stand_in(bundle: Bundle, name: str, *, precision: str, **options: Any) -> Step:
            opened.append(f"{name} {precision}")
            fault = faults.get(f"{name} {precision}", BackendMissing(f"{name} is not installed"))
            if isinstance(fault, Exception):
                raise fault
            return Stand(bundle, name, precision, fault=fault)

        def timed(steps: dict[int, Step]) -> dict[int, float]:
            return {i: (seconds or {})[f"{s.name} {s.precision}"] for i, s in steps.items()}

        for module in (choice, trial):
            monkeypatch.setattr(module, "open_backend", stand_in)
        monkeypatch.setattr(trial, "_time", timed if seconds else TIME)
        return opened

    return make


ORT, OV, OV16, TRT = "onnxruntime float32", "openvino float32", "openvino bfloat16", "tensorrt float32"
SPEED = {ORT: 0.1, OV: 0.11, OV16: 0.03, TRT: 0.001}
FULL = TryAgainLater("the GPU has too little free memory; " + "close other programs or take a smaller batch" * 8)


@pytest.mark.parametrize(
    ("faults", "taken", "notes"),
    [
        ({ORT: 0.0}, ORT, []),
        ({ORT: 0.0, OV: 0.0, OV16: 1e-3}, OV16, []),
        ({ORT: 0.0, OV: 0.0, OV16: 1e-2}, ORT, ["openvino (bfloat16): does not pass the golden check: 40.0 dB"]),
        ({ORT: 0.0, OV: 0.0}, ORT, []),  # a CPU without bfloat16
        ({ORT: 0.0, TRT: BundleRefused("the engine's gpu differs")}, ORT, ["tensorrt (float32): the engine's gpu"]),
        ({ORT: 0.0, TRT: RuntimeError("out of\nmemory")}, ORT, ["tensorrt (float32): out of memory"]),
        ({ORT: 0.0, TRT: float("nan")}, ORT, ["tensorrt (float32): does not pass the golden check: values that are"]),
    ],
)
def test_the_fastest_that_passes_is_taken(
    bundle: Bundle,
    machine: Callable[..., list[str]],
    tmp_path: Path,
    faults: dict[str, Fault],
    taken: str,
    notes: list[str],
) -> None:
    machine(faults, SPEED)
    for _ in range(2):  # chosen, and remembered
        found = choose(bundle, cache=tmp_path)
        assert f"{found.step.name} {found.step.precision}" == taken
        assert len(found.notes) == len(notes)
        assert all(note.startswith(start) for note, start in zip(found.notes, notes, strict=True))
    assert len(found.trials) == 5


def test_a_choice_holds_until_what_it_was_made_for_changes(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = machine({ORT: 0.0, OV16: 0.0}, SPEED)

    def trials() -> int:
        opened.clear()
        choose(bundle, cache=tmp_path)
        return len(opened) - 1  # the last one is the one that is taken

    assert trials() == 5
    assert trials() == 0
    monkeypatch.setattr(choice, "identity", lambda: {"cpu": "another"})
    assert trials() == 5
    assert trials() == 0
    monkeypatch.setattr(choice, "closed_gpu_files", lambda: ["/dev/nvmap"])
    assert trials() == 5
    assert trials() == 0
    monkeypatch.setattr(choice, "LOADER_CACHE", bundle.path / STEP)
    assert trials() == 5
    assert trials() == 0
    code = tmp_path / "code" / "backend.py"
    code.parent.mkdir()
    monkeypatch.setattr(choice, "CODE", code.parent)
    for content in ("old = True", "new = True"):
        code.write_text(content)
        assert trials() == 5
        assert trials() == 0
    engine = tmp_path / "engines" / bundle.sha256[:16] / "tensorrt-1.plan"
    engine.parent.mkdir(parents=True)
    engine.touch()
    assert trials() == 5
    engine.write_bytes(b"built again")
    assert trials() == 5
    os.utime(engine, (2e9, 2e9))
    assert trials() == 5
    assert trials() == 0
    (path, *_) = sorted((tmp_path / "choices").iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    whole = path.read_text()
    spoilt = (whole.replace('"here": true', '"here": 1'), whole.replace('"another"', '"a third"'))
    for content in ("", "[]", "{}", *spoilt, "[" * 100_000):
        path.write_text(content)
        assert trials() == 5, content[:80]
        assert trials() == 0
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize("mended", ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "cuda-bindings", "onnxruntime-gpu"])
def test_what_the_doctor_asks_for_brings_auto_back(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mended: str
) -> None:
    installed = {"numpy": "2.2"}
    monkeypatch.delenv(mended, raising=False)
    monkeypatch.setattr(machine_module, "version", lambda name: installed[name] if name in installed else absent(name))
    machine({ORT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "onnxruntime"
    machine({ORT: 0.0, TRT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "onnxruntime"
    if mended.isupper():
        monkeypatch.setenv(mended, "0")
    else:
        installed[mended] = "13.0"
    assert choose(bundle, cache=tmp_path).step.name == "tensorrt"


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


def test_a_user_who_may_open_the_gpu_at_last_gets_it(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "closed_gpu_files", lambda: ["/dev/nvmap"])
    machine({ORT: 0.0, TRT: BackendMissing("no NVIDIA GPU is usable (CUDA_ERROR_NO_DEVICE)")})
    assert choose(bundle, cache=tmp_path).step.name == "onnxruntime"
    monkeypatch.setattr(choice, "closed_gpu_files", list)
    machine({ORT: 0.0, TRT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "tensorrt"


@pytest.mark.parametrize("full", [FULL, (GOLDEN_SIDE, FULL), (TRIAL_SIDE, FULL)], ids=["opening", "golden", "timing"])
def test_a_gpu_that_is_full_now_is_not_remembered(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, full: Fault
) -> None:
    machine({ORT: 0.0, TRT: full})
    found = choose(bundle, cache=tmp_path)
    assert (found.step.name, found.notes) == ("onnxruntime", (f"tensorrt (float32): {FULL}",))
    machine({ORT: 0.0, TRT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "tensorrt"


def test_what_is_required_of_a_full_gpu_may_come_later(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path
) -> None:
    machine({ORT: 0.0, TRT: FULL})
    with pytest.raises(TryAgainLater, match=r"tensorrt does not pass here: .*too little free memory"):
        choose(bundle, backend="tensorrt", require=True, cache=tmp_path)


def test_a_gpu_that_is_full_now_leaves_an_earlier_choice(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path
) -> None:
    machine({ORT: 0.0, TRT: 0.0}, SPEED)
    choose(bundle, cache=tmp_path)
    machine({ORT: 0.0, TRT: FULL}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "onnxruntime"
    opened = machine({ORT: 0.0, TRT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "tensorrt"
    assert opened == [TRT]


@pytest.mark.parametrize("others", [{ORT: 0.0}, {}], ids=["another", "none"])
def test_a_gpu_that_fills_after_its_trial_leaves_the_others(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Any
) -> None:
    machine({**others, TRT: 0.0}, SPEED)
    opens = choice.open_backend

    def filled(bundle: Bundle, name: str, **options: Any) -> Step:
        if name == "tensorrt":
            raise FULL
        return opens(bundle, name, **options)

    monkeypatch.setattr(choice, "open_backend", filled)
    if not others:
        with pytest.raises(TryAgainLater, match=r"no back end passes here: .*the GPU has too little free memory"):
            choose(bundle, cache=tmp_path)
        return
    found = choose(bundle, cache=tmp_path)
    assert (found.step.name, found.notes) == ("onnxruntime", (f"tensorrt (float32): {FULL}",))
    machine({ORT: 0.0, TRT: 0.0}, SPEED)
    monkeypatch.setattr(choice, "open_backend", opens)
    assert choose(bundle, cache=tmp_path).step.name == "tensorrt"


@pytest.mark.parametrize("error", [InputRefused("outside the profile"), RuntimeError("lost\nthe device")])
def test_one_that_fails_while_it_is_timed_leaves_the_others(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, error: Exception
) -> None:
    opened = machine({ORT: 0.0, OV: 0.0, TRT: (TRIAL_SIDE, error)})
    for count in (6, 1):  # chosen, and remembered
        opened.clear()
        found = choose(bundle, cache=tmp_path)
        assert found.step.name in ("onnxruntime", "openvino")
        assert found.notes == (f"tensorrt (float32): {' '.join(str(error).split())}",)
        assert len(opened) == count


@pytest.mark.parametrize(
    "fault",
    [0.0, 1.0, (GOLDEN_SIDE, RuntimeError("lost")), (TRIAL_SIDE, RuntimeError("lost"))],
    ids=["slow", "wrong", "lost in the golden check", "lost in the timing"],
)
def test_what_is_not_taken_is_closed(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, fault: Fault
) -> None:
    machine({ORT: 0.0, OV: 0.0, TRT: fault})
    found = choose(bundle, cache=tmp_path)
    assert Stand.alive == [found.step]


def test_a_remembered_back_end_that_is_gone_is_chosen_anew(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path
) -> None:
    machine({ORT: 0.0, OV16: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "openvino"
    machine({ORT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path).step.name == "onnxruntime"


def test_a_cache_that_cannot_be_written_only_costs_time(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    machine({ORT: 0.0}, SPEED)
    assert choose(bundle, cache=tmp_path / "file").step.name == "onnxruntime"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"backend": "tensorrt"}, "tensorrt is not installed"),
        ({"backend": "openvino", "precision": "bfloat16"}, "does not pass the golden check: 26.0 dB"),
        ({"precision": "bfloat16"}, "does not pass the golden check"),
        ({"backend": "openvino", "precision": "float16"}, "openvino does not run this bundle in float16"),
    ],
)
def test_what_is_asked_runs_or_is_noted_or_is_required(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, asked: dict[str, str], reason: str
) -> None:
    machine({ORT: 0.0, OV: 0.0, OV16: 0.05}, SPEED)
    found = choose(bundle, **asked, cache=tmp_path)
    assert found.step.name == "onnxruntime"
    wanted = " ".join(asked.values())
    assert found.notes[0].startswith(f"asked for {wanted}, took onnxruntime float32, since ")
    assert reason in found.notes[0]
    with pytest.raises(BackendMissing, match=f"{wanted} does not pass here: .*{reason}"):
        choose(bundle, **asked, require=True, cache=tmp_path)


def test_nothing_that_passes_is_an_error(bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path) -> None:
    machine({ORT: 0.1}, SPEED)
    with pytest.raises(BackendMissing, match=r"no back end passes here: onnxruntime \(float32\): .*20.0 dB"):
        choose(bundle, cache=tmp_path)


def test_without_scikit_image_the_check_says_what_it_left_out(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    machine({ORT: 0.0, OV16: 0.05}, SPEED)
    (note,) = choose(bundle, cache=tmp_path).notes
    assert "26.0 dB, SSIM not measured (no scikit-image)" in note
    (path,) = (tmp_path / "choices").iterdir()
    assert json.loads(path.read_text())["key"]["ssim"] is False


def test_the_enhancer_takes_the_reference_unless_it_is_asked(
    bundle: Bundle, machine: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cache of its own: another file's test may have chosen for an equal bundle, and that is remembered.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine({ORT: 0.0, OV16: 0.0}, SPEED)
    assert Enhancer(bundle).step.name == "onnxruntime"
    assert Enhancer(bundle, backend="auto").step.name == "openvino"
    with pytest.raises(BackendMissing, match="tensorrt does not pass here"):
        Enhancer(bundle, backend="tensorrt")


def test_golden_arrays_that_are_not_the_contracts_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    np.savez(folder / "golden.npz", x_0=np.zeros(3, np.float32))
    with pytest.raises(BundleRefused, match=r"golden\.npz: .*export it again"):
        choose(open_bundle(seal(folder)), cache=tmp_path)


# On the machine itself


def test_auto_on_this_machine_gives_what_the_reference_gives(bundle: Bundle, tmp_path: Path) -> None:
    found = choose(bundle, threads=1, cache=tmp_path)
    assert {t.backend for t in found.trials if t.passed} >= {"onnxruntime", "openvino"}
    assert all(trial.seconds for trial in found.trials if trial.passed)
    x_t = np.ones((1, 1, 8, 8), np.float32)
    np.testing.assert_allclose(found.step(x_t, x_t, 0, 1), open_backend(bundle)(x_t, x_t, 0, 1), atol=0.02)


def test_auto_on_a_cpu_without_amx_and_bfloat16_takes_one_that_passes(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = import_openvino()
    core = library.Core
    monkeypatch.setattr(library, "Core", lambda: MaskedCore(core(), capabilities=["FP32"]))
    found = choose(bundle, threads=1, cache=tmp_path)
    passed = {f"{trial.backend} {trial.precision}": trial.passed for trial in found.trials}
    assert passed == {ORT: True, "onnxruntime-cuda float32": False, OV: True, OV16: False, TRT: False}
    assert found.step.precision == "float32"
    assert found.notes == ()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--require"], 2, "expected --backend or --precision beside it"),
        (["--backend", "tensorrt", "--require"], 5, "tensorrt does not pass here"),
        (["--backend", "tensorrt"], 0, "note: asked for tensorrt, took "),
        (["--backend", "openvino", "--precision", "float32", "--require"], 0, ""),
        (["--backend", "torch"], 2, "'torch' is not one of 'auto', 'onnxruntime'"),
    ],
)
def test_the_command_asks_requires_and_notes(
    bundle: Bundle,
    make_nifti: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    said: str,
) -> None:
    scan = make_nifti()
    out = scan.with_name("out.nii.gz")
    assert run(["enhance", str(scan), "-o", str(out), "--bundle", str(bundle.path), *options]) == code
    assert said in capfd.readouterr().err
    if code == 0:
        document = json.loads(out.with_name("out.json").read_text())
        assert bool(document["notes"]) == bool(said)
        if not said:
            assert document["backend"]["name"] == "openvino"
            assert "openvino" in document["versions"]
