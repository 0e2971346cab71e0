"""One run inside a container: the variables of mercure and of MONAI Deploy, an input that nobody may change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from lfmri.cli import run
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.folder.container import FOLDERS, MODEL

from . import dicoms
from .bundles import MakeBundle
from .heads import scan_of

MERCURE, HOLOSCAN = FOLDERS


@pytest.fixture
def folders(tmp_path: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """mercure's folders, and a bundle where a MONAI package keeps its model."""
    source, target = tmp_path / "data", tmp_path / "output"
    source.mkdir()
    for names in FOLDERS:
        for name, folder in zip(names, (source, target), strict=True):
            monkeypatch.setenv(name, str(folder))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "noisy").symlink_to(make_bundle("noisy"))
    monkeypatch.setenv(MODEL, str(tmp_path / "models"))
    return source, target


@pytest.fixture
def scan(make_nifti: Callable[..., Path]) -> Path:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    return make_nifti("scan.nii.gz", data=data, affine=affine, dtype=np.float32)


def task(source: Path, settings: dict[str, Any] | None) -> None:
    process = {"module_name": "lfmri", "module_config": {"docker_tag": "lfmri"}, "retain_input_images": False}
    (source / "task.json").write_text(json.dumps({"id": "1", "info": {}, "process": {**process, "settings": settings}}))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Whatever a change of a folder would show: the folders' own times too."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths}


def statuses(target: Path) -> list[str]:
    return [scan["status"] for scan in json.loads((target / "result.json").read_text())["scans"]]


def test_mercure_gets_its_names_and_its_input_is_left(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    for path in dicoms.classic(tmp_path / "series"):
        shutil.copy(path, source / f"{dicoms.SERIES}#{path.name}")
        (source / f"{dicoms.SERIES}#{path.stem}.tags").write_text("{}")
    task(source, {"steps": 2, "seed": 7})
    before = state(source)
    assert run(["watch", "--once"]) == 0
    assert state(source) == before
    assert statuses(target) == ["enhanced"]
    (sidecar,) = target.glob("2.25.*.json")
    document = json.loads(sidecar.read_text())
    assert (document["steps"], document["samples"], document["seed"]) == (2, 1, 7)
    files = sorted(target.glob("*.dcm"))
    assert len(files) > 1
    for path in files:
        header = pydicom.dcmread(path)
        assert path.name == f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}.dcm"
    assert {path.parent for path in target.rglob("*")} == {target}, "mercure does not look into folders"
    said = json.loads((target / "result.json").read_text())["scans"][0]["milliseconds"]
    assert {"read", "network", "write"} <= said.keys()


def test_images_in_folders_are_enhanced_with_the_model_beside(
    folders: tuple[Path, Path], scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MERCURE:
        monkeypatch.delenv(name)
    source, target = folders
    (source / "below").mkdir()
    for place in (source / "a.nii.gz", source / "below" / "b.nii.gz", source / "below" / "a.nii.gz"):
        shutil.copy(scan, place)
    before = state(source)
    assert run(["watch", "--once"]) == 0
    assert state(source) == before
    assert sorted(statuses(target)) == ["enhanced", "enhanced", "failed"]
    names = {path.name for path in target.iterdir()}
    assert names == {"a.nii.gz", "a.json", "b.nii.gz", "b.json", "result.json"}
    model = open_bundle(source.parent / "models" / "noisy").sha256
    assert json.loads((target / "a.json").read_text())["bundle"]["sha256"] == model


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ({}, 3, "holds no scan"),
        ({"a.nii": b"no image"}, 3, "wrong magic bytes"),
        ({"a.nii": b"no image", "b.nii": b"nor this"}, 3, "all 2 scans failed"),
        ({"a.dcm": b"no image"}, 3, "no DICOM images"),
        ({"task.json": b"{"}, 3, "task.json"),
        ({"task.json": b'{"process": {"settings": {"step": 2}}}'}, 3, "the key 'step' is not known"),
        ({"task.json": b'{"process": {"settings": {"steps": "2"}}}'}, 3, "settings.steps is '2'"),
    ],
)
def test_where_everything_fails_the_exit_code_says_so(
    folders: tuple[Path, Path], content: dict[str, bytes], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in content.items():
        (folders[0] / name).write_bytes(data)
    assert run(["watch", "--once"]) == code
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("settings", [None, {}, {"steps": None}])
def test_a_task_without_settings_takes_the_configured_ones(
    folders: tuple[Path, Path], scan: Path, settings: dict[str, Any] | None
) -> None:
    source, target = folders
    shutil.copy(scan, source)
    task(source, settings)
    assert run(["watch", "--once"]) == 0
    assert json.loads((target / "scan.json").read_text())["steps"] == 1


def test_an_output_folder_that_holds_something_is_refused(
    folders: tuple[Path, Path], scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(scan, folders[0])
    assert run(["watch", "--once"]) == 0
    assert run(["watch", "--once"]) == 2
    assert "expected an empty output folder" in capsys.readouterr().err


def test_a_model_path_without_one_bundle_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "noisy").unlink()
    (tmp_path / "models" / "model.ts").write_bytes(b"")
    assert run(["watch", "--once"]) == 4
    assert f"({MODEL}) holds 0 bundles" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["watch", "--once"], ["watch"], ["watch", "--in", "a"], ["watch", "--out", "a"]])
def test_without_folders_the_command_says_what_is_expected(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*MERCURE, *HOLOSCAN):
        monkeypatch.delenv(name, raising=False)
    assert run(arguments) == 2
    assert "expected" in capsys.readouterr().err
