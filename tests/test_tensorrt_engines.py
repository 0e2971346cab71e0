"""Engines: really built by TensorRT-RTX, kept in the cache, and refused where they do not belong."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lfmri.cli import run
from lfmri.commands.export import DEFAULT_PROFILE, export
from lfmri_export.building import PARTS, PIECE_MM, create_monitor
from lfmri_export.engine import export_engine
from lfmri_export.rtx import export_rtx_engines
from lfmri_runtime.backends.onnxruntime import OnnxRuntimeStep
from lfmri_runtime.backends.tensorrt import engine as engine_module
from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.engine import check_identity, open_engine, read_plan
from lfmri_runtime.backends.tensorrt.identity import engine_folder, parse_profile, read_sidecar
from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.cache import cache_folder
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ModelSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.contract import render
from lfmri_runtime.device import verify as acceptance
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BackendMissing, BundleRefused, TryAgainLater, UsageError

from .bundles import MakeBundle, step_graph
from .fake_machine import PROFILE, Machine

PAGE = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
SHAPES = parse_profile(PROFILE, multiple=8)
TARGETS = {"SM86": "8.6", "SM89": "8.9", "SM120": "12.0"}


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Bundle:
    return open_bundle(make_bundle("noisy"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, bundle, tmp_path, "11")


def build_rtx(bundle: Bundle, cache: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    options: dict[str, Any] = {"cache": cache, "say": lambda line: None, "progress": progress}
    ((path, new),) = export_rtx_engines(bundle, SHAPES, targets=["SM89"], **options)
    assert new
    return path


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.rglob("*") if path.is_file()}


# Really built


def test_tensorrt_rtx_builds_the_built_in_bundle_for_three_cards_without_torch_or_a_gpu(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'scipy', 'skimage', 'lfmri_trainer', 'cuda'):\n"
        "    sys.modules[name] = None\n"
        "from lfmri.cli import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    arguments = ["export", "--trt-rtx", "--cache", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bundle = open_bundle()
    folder = engine_folder(bundle, tmp_path)
    assert [line.split()[-1] for line in done.stderr.splitlines()] == list(TARGETS)
    assert done.stdout.count(f"wrote {folder}") == len(TARGETS)
    plans = {}
    for path in folder.glob("*.json"):
        sidecar = read_sidecar(path)
        assert sidecar.identity.bundle == bundle.sha256
        assert sidecar.identity.precision == "float16"
        assert (sidecar.identity.platform, sidecar.identity.multiprocessors) == (platform.machine(), None)
        plans[sidecar.identity.compute_capability] = read_plan(path, sidecar)
    assert sorted(plans) == sorted(TARGETS.values())
    assert len(set(plans.values())) == len(TARGETS)
    weights = 2 * bundle.contract.parameters  # half weights are what most of an engine is
    assert all(weights < len(plan) < 4 * weights for plan in plans.values())


def mistyped() -> onnx.ModelProto:
    """The step graph with a product of a half and a float32 number, as a careless converter makes it."""
    model = step_graph(0.1)
    model.graph.node.insert(0, helper.make_node("Cast", ["y"], ["y_half"], to=TensorProto.FLOAT16))
    add = next(node for node in model.graph.node if node.output[0] == "x_1")
    add.input[0] = "y_half"
    return model


def half_time() -> onnx.ModelProto:
    """A step graph whose t is a half number."""
    model = step_graph(0.1)
    (time,) = (value for value in model.graph.input if value.name == "t")
    time.type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.node.insert(0, helper.make_node("Cast", ["t"], ["t_float"], to=TensorProto.FLOAT))
    minus = next(node for node in model.graph.node if node.output[0] == "remainder")
    minus.input[1] = "t_float"
    return model


def unknown_operator() -> onnx.ModelProto:
    model = step_graph(0.1)
    next(node for node in model.graph.node if node.output[0] == "x_1").op_type = "Addd"
    return model


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (mistyped(), "TensorRT .* (Half|Float|type)"),
        (half_time(), "has the inputs .*'t', 'float16', 1.* its contract says .*'t', 'float32', 1"),
        (unknown_operator(), "TensorRT refuses the graph .*not found"),
    ],
    ids=["mistyped", "half time", "unknown operator"],
)
def test_tensorrt_rtx_refuses_a_wrong_graph(
    make_bundle: MakeBundle, tmp_path: Path, model: onnx.ModelProto, match: str
) -> None:
    bundle = open_bundle(make_bundle("noisy", model=model))
    with pytest.raises(BundleRefused, match=match) as refusal:
        build_rtx(bundle, tmp_path)
    assert "\n" not in str(refusal.value)
    assert suffixes(tmp_path) == {".lock"}


def test_progress_rises_to_its_end(bundle: Bundle, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_rtx(bundle, tmp_path, progress=lambda done, total: seen.append((done, total)))
    done = [part for part, _ in seen]
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert {total for _, total in seen} == {PARTS}
    assert 0.5 * PARTS < done[-1] <= PARTS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_stops_and_leaves_nothing(bundle: Bundle, tmp_path: Path, number: int) -> None:
    raised = threading.Event()
    once = iter((number,))  # the builder's threads may call side by side: a second signal would meet the test's end

    def interrupt(signal_number: int, frame: object) -> None:
        raised.set()
        raise SystemExit

    def progress(done: int, total: int) -> None:
        for signal_number in once:
            os.kill(os.getpid(), signal_number)
            assert raised.wait(timeout=30)

    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(SystemExit):
            build_rtx(bundle, tmp_path, progress=progress)
    finally:
        signal.signal(number, before)
    assert suffixes(tmp_path) == {".lock"}
    build_rtx(bundle, tmp_path)


def test_a_stopped_monitor_ends_the_build(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(trt: Any, progress: Any) -> Any:
        monitor = create_monitor(trt, progress)
        monitor.stopped = True
        return monitor

    monkeypatch.setattr("lfmri_export.building.create_monitor", stopped)
    with pytest.raises(BundleRefused, match=r"builds no engine from the graph .*[Cc]ancel"):
        build_rtx(bundle, tmp_path)


def test_nothing_but_the_wish_to_stop_ends_a_build(machine: Machine) -> None:
    def gone(done: int, total: int) -> None:
        raise BrokenPipeError

    machine.build(progress=gone)
    monitor = create_monitor(machine.trt, gone)
    assert monitor.step_complete("a phase that never began", 0)
    monitor.stopped = True
    assert not monitor.step_complete("a phase that never began", 1)


def test_a_monitor_takes_one_thread_at_a_time(machine: Machine) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(done: int, total: int) -> None:
        entered.set()
        assert leave.wait(30)

    monitor = create_monitor(machine.trt, slow)
    monitor.phase_start("Building engine", None, 2)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(monitor.step_complete, "Building engine", 0)
        assert entered.wait(30)
        others = threads.submit(monitor.phase_start, "Timing tactics", "Building engine", 4)
        blocked = wait([others], timeout=0.2).not_done
        leave.set()
        assert blocked
        assert first.result()
        others.result()


# The cache


def test_an_engine_is_built_once_and_again_only_when_asked(machine: Machine) -> None:
    said: list[str] = []
    path = machine.build(say=said.append)
    assert said == ["building an engine with TensorRT 11.4.0.106 for Fake GPU; a Jetson takes some minutes"]
    assert path.parent == engine_folder(machine.bundle, machine.cache)
    assert machine.build(say=said.append) == path
    assert len(machine.trt.state.built) == 1
    path.write_bytes(b"other bytes")
    with pytest.raises(BundleRefused, match=r"has changed.*--rebuild"):
        machine.build(say=said.append)
    assert machine.build(rebuild=True, say=said.append) == path
    assert len(machine.trt.state.built) == 2
    assert len(said) == 2
    machine.open().close()


def test_a_flipped_bit_in_any_byte_of_a_sidecar_is_seen(machine: Machine) -> None:
    path = machine.build().with_suffix(".json")
    content = path.read_bytes()
    plan = read_sidecar(path).plan
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(BundleRefused, match=rf"{path.name}|{path.stem}\.plan"):
            read_plan(path, read_sidecar(path))
    path.write_bytes(content)
    assert read_sidecar(path).plan == plan


@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_bit_of_an_engine_is_seen_before_it_is_loaded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, place: float
) -> None:
    path = machine.build()
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 4
    path.write_bytes(content)
    monkeypatch.setattr(machine.trt, "Runtime", None)
    with pytest.raises(BundleRefused, match=rf"{path.name} has changed: its sha256 is .*, its sidecar says"):
        machine.open()


def remove_plan(path: Path) -> None:
    path.unlink()


def cut_plan(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def remove_sidecar(path: Path) -> None:
    path.with_suffix(".json").unlink()


def fill_sidecar(path: Path) -> None:
    path.with_suffix(".json").write_bytes(b"[" * (1 << 17))


def newer_sidecar(path: Path) -> None:
    document = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**document, "schema": 3}))


def older_sidecar(path: Path) -> None:
    document = json.loads(path.with_suffix(".json").read_text())
    del document["identity"]["multiprocessors"]
    path.with_suffix(".json").write_text(json.dumps({**document, "schema": 1}))


def rename(path: Path) -> None:
    for suffix in (".plan", ".json"):
        path.with_suffix(suffix).rename(path.with_name(f"tensorrt-0123456789abcdef{suffix}"))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (remove_plan, "plan: No such file or directory; make the engine again"),
        (cut_plan, "plan has changed"),
        (fill_sidecar, "cannot be read"),
        (newer_sidecar, "has schema 3; this lfmri reads schema 2: make the engine again"),
        (older_sidecar, "has schema 1; this lfmri reads schema 2: make the engine again"),
        (rename, "was changed: its identity is that of tensorrt-.*, its name says tensorrt-0123456789abcdef"),
    ],
)
def test_a_damaged_engine_is_refused_with_the_reason(
    machine: Machine, damage: Callable[[Path], None], match: str
) -> None:
    damage(machine.build())
    with pytest.raises(BundleRefused, match=match):
        machine.open()
    assert BundleRefused.exit_code == 4


def test_an_engine_without_its_sidecar_is_never_loaded(machine: Machine) -> None:
    remove_sidecar(machine.build())
    with pytest.raises(BackendMissing, match="no TensorRT engine of this bundle"):
        machine.open()
    with pytest.raises(BundleRefused, match="--rebuild"):
        machine.build()


def test_an_engine_that_is_too_large_is_not_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.build()
    monkeypatch.setattr(engine_module, "MAX_PLAN_BYTES", 10)
    with pytest.raises(BundleRefused, match="expected at most 10"):
        machine.open()


def test_the_library_refusing_an_engine_is_one_line(machine: Machine) -> None:
    machine.build()
    machine.trt.state.fail = lambda name: name == "deserialize"
    with pytest.raises(BundleRefused, match=r"plan cannot be loaded \(bad magic number\); make the engine again"):
        machine.open()
    assert machine.left() == []


def test_a_build_that_fails_leaves_the_engine_that_was_there(machine: Machine) -> None:
    path = machine.build()
    content = path.read_bytes()
    machine.trt.state.fail = lambda name: name == "build"
    with pytest.raises(BundleRefused, match=r"builds no engine from the graph \(no tactic was found\)"):
        machine.build(rebuild=True)
    assert path.read_bytes() == content
    assert suffixes(machine.cache) == {".lock", ".plan", ".json", ".cache"}


def test_a_full_disk_leaves_no_half_engine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TryAgainLater, match="disk full"):
            machine.build()
    assert suffixes(machine.cache) == {".lock"}
    machine.build()
    machine.open().close()


HOLD = """
import fcntl, sys
stream = open(sys.argv[1], "a")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_an_engine_that_another_process_makes_is_left_to_it(machine: Machine) -> None:
    lock = machine.build().with_suffix(".lock")
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TryAgainLater, match="another process makes this engine now"):
            machine.build(rebuild=True)
        other.kill()
    machine.build(rebuild=True)
    assert len(machine.trt.state.built) == 2


def test_an_engine_is_built_on_the_gpu_that_is_current(machine: Machine) -> None:
    machine.build()
    machine.driver.cuCtxSetCurrent(5)
    machine.build(rebuild=True)
    assert machine.trt.state.built_in == [99, 5]  # the first GPU's own context, and the caller's


def test_timings_are_kept_and_wrong_ones_are_replaced(machine: Machine) -> None:
    timings = machine.build().parents[1].glob("timings-*.cache")
    (path,) = timings
    assert path.read_bytes() == b"timings of Fake GPU"
    for content in (b"timings of Fake GPU", b"not timings", b"timings of another GPU"):
        path.write_bytes(content)
        machine.build(rebuild=True)
        used = machine.trt.state.built[-1].get_timing_cache()._content
        assert used == (content if b"Fake" in content else b"")
        assert path.read_bytes() == b"timings of Fake GPU"


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/console")
    assert cache_folder() == Path("/var/cache/console/lfmri")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == Path.home() / ".cache" / "lfmri"


# Identity


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("bundle", "0" * 64, None),
        ("onnx", "0" * 64, None),
        ("precision", "float16", "float32"),
        ("library_version", "11.3.0", "11.4.0.106"),
        ("compute_capability", "8.6", "8.7"),
        ("gpu", "Other GPU", "Fake GPU"),
        ("multiprocessors", 8, "16"),
        ("platform", "another", platform.machine()),
    ],
)
def test_the_field_that_differs_is_named(machine: Machine, field: str, value: Any, expected: str | None) -> None:
    path = machine.build().with_suffix(".json")
    identity = read_sidecar(path).identity
    check_identity(path, identity, machine.bundle, Device(), machine.trt)
    expected = expected or str(getattr(identity, field))
    with pytest.raises(BundleRefused, match=f"the engine's {field} is {value}; expected {expected} here: make one"):
        check_identity(path, replace(identity, **{field: value}), machine.bundle, Device(), machine.trt)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"version_compatible": True, "library_version": "10.3.0.30"}, True),
        ({"version_compatible": True, "library_version": "11.4.0.107"}, False),
        ({"version_compatible": True, "gpu": "Other GPU"}, False),
        ({"version_compatible": True, "multiprocessors": 8}, False),
        ({"hardware_compatible": True, "multiprocessors": 8}, True),
        ({"hardware_compatible": True, "version_compatible": True, "platform": "another"}, False),
        ({"hardware_compatible": True, "gpu": "Other GPU", "compute_capability": "8.0"}, True),
        ({"hardware_compatible": True, "library_version": "10.3.0"}, False),
        ({"gpu": None, "multiprocessors": None}, True),
        ({"gpu": None, "multiprocessors": None, "platform": "another"}, False),
        ({"gpu": None, "compute_capability": "8.6"}, False),
    ],
)
def test_what_a_compatible_engine_may_differ_in(machine: Machine, changes: dict[str, Any], fits: bool) -> None:
    path = machine.build().with_suffix(".json")
    identity = replace(read_sidecar(path).identity, **changes)
    if fits:
        check_identity(path, identity, machine.bundle, Device(), machine.trt)
    else:
        with pytest.raises(BundleRefused, match="the engine's"):
            check_identity(path, identity, machine.bundle, Device(), machine.trt)


def test_two_modules_of_one_name_have_engines_and_timings_of_their_own(machine: Machine) -> None:
    large = machine.build()
    machine.driver.multiprocessors = 8
    with pytest.raises(BundleRefused, match="the engine's multiprocessors is 16; expected 8 here: make one here"):
        machine.open()
    assert machine.build() != large
    assert len(list(large.parents[1].glob("timings-*.cache"))) == 2
    machine.open().close()


def test_an_updated_library_refuses_the_engine_and_nothing_is_built(machine: Machine) -> None:
    machine.build()
    machine.trt.__version__ = "11.5.0"
    with pytest.raises(BundleRefused, match=r"library_version is 11.4.0.106; expected 11.5.0 here: make one here with"):
        machine.open()
    assert len(machine.trt.state.built) == 1
    machine.build()
    machine.open().close()


def test_the_newest_engine_of_this_machine_is_taken(machine: Machine) -> None:
    first = machine.build()
    machine.driver.name = "Other GPU"
    machine.build()
    machine.driver.name = "Fake GPU"
    second = machine.build(version_compatible=True, hardware_compatible=True)
    assert int(machine.trt.BuilderFlag.VERSION_COMPATIBLE) in machine.trt.state.built[-1]._flags
    assert machine.trt.state.built[-1].hardware_compatibility_level == 1
    for newest, compatible in ((first, False), (second, True)):
        for age, path in enumerate((newest, second if newest == first else first)):
            os.utime(path.with_suffix(".json"), (2e9 - age, 2e9 - age))
        assert open_engine(machine.bundle, Device(), cache=machine.cache).identity.version_compatible == compatible


def test_an_engine_whose_arrays_are_not_the_contracts_is_refused(machine: Machine, make_bundle: MakeBundle) -> None:
    path = machine.build()
    sidecar = read_sidecar(path.with_suffix(".json"))
    other = replace(sidecar, identity=replace(sidecar.identity, profile=parse_profile("1x8x8,1x8x8,1x8x8", multiple=8)))
    path.rename(path.with_name(f"{other.identity.name}.plan"))
    path.with_suffix(".json").unlink()
    path.with_name(f"{other.identity.name}.json").write_text(render(other))
    with pytest.raises(BundleRefused, match=r"the engine takes the shapes .* its sidecar says 1x8x8,1x8x8,1x8x8"):
        machine.open()


@pytest.mark.parametrize(
    "text",
    ["", "1x8x8", "1x8x8,2x16x16", "1x8,2x16,4x64", "1x8x8,2x16x17,4x64x64", "0x8x8,1x8x8,1x8x8", "2x8x8,1x8x8,1x8x8"],
)
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected the smallest, the usual and the largest BATCHxROWSxCOLUMNS"):
        parse_profile(text, multiple=8)


# The command


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--trt", "--out", "b"), "--out does not go with --trt; expected it with RUN"),
        (("run", "--trt"), "run does not go with --trt; expected it with RUN"),
        (
            ("run", "--out", "b", "--profile", "1x8x8,1x8x8,1x8x8"),
            "--profile does not go with RUN; expected it with --trt",
        ),
        (("--trt", "--trt-rtx"), "--trt-rtx does not go with --trt"),
        (("--trt", "--target", "SM86"), "--target does not go with --trt; expected it with --trt-rtx"),
        (("--trt-rtx", "--version-compatible"), "--version-compatible does not go with --trt-rtx"),
        (("--trt-rtx", "--target", "SM87"), "--target is 'SM87'; TensorRT-RTX .* builds for SM75, SM80"),
        (("--trt-rtx", "--profile", "1x8x8"), "--profile is '1x8x8'"),
        ((), "expected RUN --out BUNDLE for a bundle, or --trt or --trt-rtx for engines"),
        (("run",), "expected RUN --out BUNDLE"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, match: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(["export", *arguments]) == 2
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.parametrize(
    "profile",
    [
        "2x8x8,2x192x192,4x384x384",
        "1x8x8,2x192x192,3x384x384",
        "1x32x8,2x192x192,4x384x384",
        "1x8x8,2x64x64,4x64x64",
        "1x8x8,2x96x96,4x96x96",
        "1x128x128,2x192x192,4x256x256",
    ],
)
def test_a_profile_whose_engine_could_never_pass_is_refused_before_it_is_built(
    machine: Machine, capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    arguments = ["export", "--trt", "--bundle", str(machine.bundle.path), "--cache", str(machine.cache)]
    assert run([*arguments, "--profile", profile]) == 2
    said = capsys.readouterr().err
    assert f"--profile is {profile}; expected one that covers 1x24x16 and 4x24x16 (lfmri verify), " in said
    assert "2x64x64 (the golden check), 2x96x96 (the timing of --backend auto), " in said
    assert "2x192x192 (the warm-up of lfmri serve): widen it" in said
    assert machine.trt.state.built == []
    assert run([*arguments, "--profile", "1x24x16,2x96x96,4x192x192"]) == 0


def test_from_python_such_a_profile_is_refused_as_well(machine: Machine) -> None:
    options: dict[str, Any] = {"cache": machine.cache, "say": print, "progress": lambda done, total: None}
    small = parse_profile("1x8x8,2x64x64,4x64x64", multiple=8)
    with pytest.raises(UsageError, match="expected one that covers"):
        export_engine(machine.bundle, small, **options)
    with pytest.raises(UsageError, match="expected one that covers"):
        next(export_rtx_engines(machine.bundle, small, **options))
    assert machine.trt.state.built == []


def test_the_slices_of_a_profile_are_those_that_verify_enhances(bundle: Bundle) -> None:
    seen = set()

    class Noting(OnnxRuntimeStep):
        def flow(self, batches: Any, time_grid: Any) -> Iterator[Any]:
            for _x_0, y in batches:
                seen.add((len(y), *y.shape[2:]))
                yield y

    enhancer = Enhancer(bundle, step=Noting(bundle, threads=1))
    assert all(check.passed for check in acceptance._batches(enhancer, lambda line: None))
    assert seen == {(batch, *PIECE_MM) for batch in acceptance.BATCHES}


def test_the_warm_up_of_a_profile_is_the_services(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(OnnxRuntimeStep, "warmup", lambda step, shape: seen.append(shape))
    station = Station(ModelSettings(bundle=str(bundle.path), backend="onnxruntime"), Journal())
    station.warm()
    station.close()
    assert seen == [(2, 1, 192, 192)]


def test_the_command_builds_on_this_machines_gpu(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--trt", "--bundle", str(machine.bundle.path), "--cache", str(machine.cache)]
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("lfmri: building an engine with TensorRT 11.4.0.106 for Fake GPU")
    path = Path(shown.out.removeprefix("wrote ").strip())
    assert path.is_file()
    assert run(arguments) == 0
    assert capsys.readouterr().out == f"{path} is there already; --rebuild makes it again\n"
    assert run([*arguments, "--rebuild"]) == 0
    assert run([*arguments, "--version-compatible"]) == 0
    assert capsys.readouterr().out.count("wrote") == 2


def test_no_gpu_and_no_tensorrt_are_exit_5(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.driver.fail = lambda name, number: machine.driver.CUresult.CUDA_ERROR_NO_DEVICE
    assert run(["export", "--trt", "--cache", str(machine.cache)]) == 5
    assert "no NVIDIA GPU is usable" in capsys.readouterr().err
    machine.driver.fail = lambda name, number: None
    sys.modules[machine.trt.__name__] = None  # type: ignore[assignment]
    assert run(["export", "--trt", "--cache", str(machine.cache)]) == 5
    assert "tensorrt cannot be imported" in capsys.readouterr().err


# The page


def test_the_page_names_every_option_of_engines_and_no_other() -> None:
    words = {name for parameter in export.params for name in parameter.opts if name.startswith("--")}
    of_bundles = {"--out", "--name", "--model-version", "--licence", "--precision", "--pairs", "--data"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--system-site-packages"} == words - of_bundles
    assert DEFAULT_PROFILE.format(8) in PAGE


def test_the_python_of_the_page_runs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine.cache))
    machine.bundle, machine.cache = open_bundle(), cache_folder()
    machine.build()
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    x_0 = np.ones((1, 1, 8, 8), np.float32)
    names: dict[str, Any] = {"batches": [(x_0, x_0)]}
    exec(block, names)
    assert names["x_1"].shape == x_0.shape
    assert machine.left() == []
