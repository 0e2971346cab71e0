"""The example plug-ins against stand-ins for their hosts, and the page of the API."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.enhancer import Enhancer

from .bundles import MakeBundle
from .heads import scan_of

DOCS = Path(__file__).parents[1] / "docs"


class Writer:
    """What a host's writer was called with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def write_dicom(
        self, image_ndarray: Any, task: Any, folder: str, series_offset: int = 0, name: str = "", description: str = "",
        primary_result: bool = True, autoload_viewer: int = 1, result_index: int = 0,
    ) -> None:  # fmt: skip
        """The signature of MRI4ALL's recon/DICOM/DICOM_utils.py."""
        self.calls.append({key: value for key, value in locals().items() if key != "self"})
        task.results.insert(result_index, name)

    def save_nifti(self, axes_orientation: Any, n_points: Any, fov: Any, dfov: Any, image: Any, file_path: str) -> None:
        """The signature of MaRGE's marge/marge_utils/utils.py."""
        self.calls.append({key: value for key, value in locals().items() if key != "self"})


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def enhancer(make_bundle: MakeBundle) -> Enhancer:
    return Enhancer(open_bundle(make_bundle("y")), threads=1)


@pytest.fixture
def plug_in(
    monkeypatch: pytest.MonkeyPatch, writer: Writer, enhancer: Enhancer, request: pytest.FixtureRequest
) -> ModuleType:
    """A plug-in in a process where its host's modules can be imported."""
    log = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
    modules = {
        "common": {"logger": SimpleNamespace(get_logger=lambda: log)},
        "recon": {},
        "recon.DICOM": {"DICOM_utils": writer},
        "marge": {},
        "marge.marge_utils": {"utils": writer},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(request.param, DOCS / "plugins" / f"{request.param}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "Enhancer", lambda: enhancer)
    return module


@pytest.mark.parametrize("plug_in", ["mri4all_recon"], indirect=True)
def test_mri4all_gets_a_second_series_and_its_image_stays(
    plug_in: ModuleType, writer: Writer, enhancer: Enhancer
) -> None:
    data, _ = scan_of(np.diag([1.6, 1.6, 5.0, 1.0]), (24, 20, 8))
    image = data * np.exp(1j * data)
    before = image.copy()
    task = SimpleNamespace(results=["Reconstruction", "k-Space", "Phase"])
    assert plug_in.add_enhanced(image, task, "/scan/dicom", voxel_size=(1.6, 1.6, 5.0))
    np.testing.assert_array_equal(image, before)
    (call,) = writer.calls
    expected = enhancer.enhance(np.abs(image).astype(np.float32), np.diag([1.6, 1.6, 5, 1]), grid="input").mean
    np.testing.assert_array_equal(call["image_ndarray"], expected)
    assert call["image_ndarray"].shape == image.shape
    assert (call["folder"], call["series_offset"], call["primary_result"]) == ("/scan/dicom", 3, False)
    assert "by-hand 0.0.1" in call["description"]
    assert task.results == ["Reconstruction", "k-Space", "Phase", "Enhanced (lfmri)"]
    assert not plug_in.add_enhanced(np.zeros_like(image), task, "/scan/dicom", voxel_size=(1.6, 1.6, 5.0))
    assert len(writer.calls) == 1, "what fails leaves the console's own series alone"


def sequence(image: Any, folder: Path) -> SimpleNamespace:
    values = {"image3D": image, "nPoints": [20, 24, 8], "axesOrientation": [2, 0, 1]}
    values |= {"fov": [24 * 0.15, 8 * 0.5, 20 * 0.12], "dfov": [0.0, 0.0, 0.0]}
    return SimpleNamespace(mapVals=values, output=[], directory_mat=str(folder / "mat"), file_name="RARE.1")


@pytest.mark.parametrize("plug_in", ["marge_recon"], indirect=True)
def test_marge_shows_and_writes_the_enhanced_image(
    plug_in: ModuleType, writer: Writer, enhancer: Enhancer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, _ = scan_of(np.diag([5.0, 1.5, 1.2, 1.0]), (8, 24, 20))
    host = sequence(data * np.exp(1j * data), tmp_path)
    before = host.mapVals["image3D"].copy()
    assert plug_in.voxel_size(*(host.mapVals[key] for key in ("fov", "nPoints", "axesOrientation"))) == pytest.approx(
        (5.0, 1.5, 1.2)
    )
    assert plug_in.add_enhanced(host)
    np.testing.assert_array_equal(host.mapVals["image3D"], before)
    expected = enhancer.enhance(np.abs(before).astype(np.float32), np.diag([5.0, 1.5, 1.2, 1.0]), grid="input").mean
    np.testing.assert_array_equal(host.mapVals["image3D_lfmri"], expected)
    assert host.output[0]["data"] is writer.calls[0]["image"] is host.mapVals["image3D_lfmri"]
    assert writer.calls[0]["file_path"] == str(tmp_path / "nii" / "RARE.1_lfmri.nii")
    broken = sequence(np.zeros_like(data), tmp_path)
    assert not plug_in.add_enhanced(broken)
    assert "not enhanced" in capsys.readouterr().out
    assert broken.output == []
    assert len(writer.calls) == 1


def test_the_python_of_the_api_page_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "api.md").read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(16, 20, 5) {"), done.stdout


def test_the_api_page_names_what_there_is() -> None:
    text = (DOCS / "api.md").read_text()
    for name in inspect.signature(Enhancer.enhance).parameters:
        if name not in ("self", "mask", "progress"):
            assert f"`{name}`" in text or f"{name}=" in text, name
