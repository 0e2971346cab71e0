"""A bundle is refused before anything is loaded from it, unless every byte is the one that its contract names."""

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import BUILT_IN, open_bundle
from lfmri_runtime.contract import MAX_CONTRACT_BYTES, SCHEMA
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.files import sha256_file
from lfmri_runtime.golden import MAX_BYTES, read_golden

from .bundles import MakeBundle, arrays, change_contract, seal, seal_contract, step_graph

FILES = ("step.onnx", "golden.npz", "MODEL_CARD.md")
CONTRACT = ("contract.json", "contract.sha256")


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test as soon as ONNX Runtime is asked to load anything."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("ONNX Runtime was asked to load"))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BundleRefused, match=match) as caught:
        Enhancer(open_bundle(folder))
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert str(folder) in message or message.startswith("contract.json")
    assert "\n" not in message


def test_a_whole_bundle_opens_and_is_known_by_its_contract(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    bundle = open_bundle(folder)
    assert bundle.path == folder
    assert bundle.sha256 == sha256_file(folder / "contract.json")
    assert bundle.contract.name == "by-hand"
    assert bundle.read("MODEL_CARD.md") == (folder / "MODEL_CARD.md").read_bytes()
    step = open_backend(bundle)
    assert (step.name, step.provider, step.precision) == ("onnxruntime", "CPUExecutionProvider", "float32")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_refused(make_bundle: MakeBundle, name: str, place: float) -> None:
    folder = make_bundle()
    content = bytearray((folder / name).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, f"{name} does not have the sha256 that its contract gives; copy the bundle again")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", CONTRACT)
def test_one_flipped_bit_of_the_contract_is_refused_wherever_it_is(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), 1 if name == "contract.sha256" else 97):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (folder / name).write_bytes(content)
        refused(folder, r"contract\.json does not have the sha256 that contract\.sha256 gives; copy the bundle again")


def test_the_built_in_bundle_is_sealed_as_sha256sum_checks_it() -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "contract.sha256"], cwd=BUILT_IN, check=True)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", [*FILES, "contract.sha256"])
def test_a_missing_file_is_refused(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    (folder / name).unlink()
    refused(folder, f"{name}: No such file or directory; copy the whole bundle again")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_file_that_changes_after_the_check_is_refused(make_bundle: MakeBundle) -> None:
    bundle = open_bundle(make_bundle())
    (bundle.path / "step.onnx").write_bytes(b"other")
    with pytest.raises(BundleRefused, match="does not have the sha256"):
        open_backend(bundle)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_missing_contract_or_folder_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    folder = make_bundle()
    (folder / "contract.json").unlink()
    refused(folder, "contract.json: No such file or directory; expected a bundle that `lfmri export` made")
    refused(tmp_path / "nowhere", "No such file or directory")
    refused(make_bundle() / "step.onnx", "Not a directory")


def _newer(document: dict[str, Any]) -> None:
    document["schema"] = SCHEMA + 1


def _unknown(document: dict[str, Any]) -> None:
    document["processing"]["smoothing"] = 1


def _nothing_verified(document: dict[str, Any]) -> None:
    document["steps"] = []


def _no_step(document: dict[str, Any]) -> None:
    del document["files"]["step.onnx"]


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_newer, f"has schema {SCHEMA + 1}; this lfmri reads schema {SCHEMA}: update lfmri"),
        (_unknown, "the key 'smoothing' is not known"),
        (_nothing_verified, r"contract\.json: steps is \(\); expected one or more different numbers from 1 to 1000"),
        (_no_step, "no valid entry for 'step.onnx'"),
    ],
)
def test_a_contract_that_is_not_understood_is_refused(
    make_bundle: MakeBundle, change: Callable[[dict[str, Any]], None], match: str
) -> None:
    refused(change_contract(make_bundle(), change), match)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_oversized_contract_is_refused_before_it_is_parsed(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    path = folder / "contract.json"
    path.write_text(path.read_text() + " " * (MAX_CONTRACT_BYTES - path.stat().st_size))
    seal_contract(folder)
    assert open_bundle(folder).contract.name == "by-hand"
    path.write_text(path.read_text() + " ")
    monkeypatch.setattr("lfmri_runtime.bundle.parse_contract", lambda text: pytest.fail("it was parsed"))
    refused(folder, f"has over {MAX_CONTRACT_BYTES} bytes")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", ["../outside.bin", "sub/inside.bin", "/outside.bin", "..", ".", ""])
def test_a_name_that_leaves_the_folder_is_refused(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    outside = folder.parent / "outside.bin"
    outside.write_bytes(b"x")
    change_contract(folder, lambda document: document["files"].update({name: sha256_file(outside)}))
    refused(folder, "no valid entry for|does not have|Is a directory")


def _renamed(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = {"y": "condition"}.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = ["condition" if name == "y" else name for name in node.input]


def _swapped(model: onnx.ModelProto) -> None:
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend([inputs[1], inputs[0], *inputs[2:]])


def _double(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for name in ("one", "share"):
        weight = next(w for w in model.graph.initializer if w.name == name)
        number = onnx.numpy_helper.to_array(weight).astype(float)
        weight.CopyFrom(onnx.numpy_helper.from_array(number, name))


def _fixed_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize("change", [_renamed, _swapped, _double, _fixed_batch])
def test_a_graph_whose_arrays_are_not_the_contracts_is_refused(
    make_bundle: MakeBundle, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = step_graph(0.0)
    change(model)
    refused(make_bundle(model=model), "its contract says")


def test_a_contract_that_names_other_arrays_is_refused(make_bundle: MakeBundle) -> None:
    inputs, outputs = arrays()
    refused(make_bundle(inputs=inputs[:3], outputs=outputs), "its contract says")


def test_bytes_that_are_no_graph_are_refused_though_their_hash_is_right(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / "step.onnx").write_bytes(b"no graph")
    refused(seal(folder), "step.onnx cannot be loaded")


def golden_refused(folder: Path, match: str) -> None:
    bundle = open_bundle(seal(folder))
    with pytest.raises(BundleRefused, match=match) as caught:
        read_golden(bundle)
    assert str(caught.value).startswith(f"{folder / 'golden.npz'}: ")
    assert "\n" not in str(caught.value)


def test_golden_arrays_that_take_much_memory_are_refused_before_they_are_unpacked(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle()
    arrays = dict(np.load(folder / "golden.npz"))
    large = np.zeros((MAX_BYTES // len(arrays) // 2**18 + 1, 1, 256, 256), np.float32)
    np.savez_compressed(folder / "golden.npz", **dict.fromkeys(arrays, large))
    assert (folder / "golden.npz").stat().st_size < MAX_BYTES / 100
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    golden_refused(folder, f"bytes unpacked, more than {MAX_BYTES}; expected x_0, y, x_1, result_1")


def test_golden_arrays_that_are_damaged_are_refused_though_their_hash_is_right(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    place = folder / "golden.npz"
    whole = place.read_bytes()
    with zipfile.ZipFile(place) as packed:
        middle = sum(entry.compress_size for entry in packed.infolist()) // 2
    changed = [whole[:start] + b"\xff" * 64 + whole[start + 64 :] for start in (64, middle)]
    for content in (b"no archive", b"", whole[:-10], whole[: len(whole) // 2], *changed):
        place.write_bytes(content)
        golden_refused(folder, r"golden\.npz: .*; expected x_0, y, x_1, .*: export it again")
