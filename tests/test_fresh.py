"""What a stranger does on a fresh machine: environments of their own, made by the project's own files."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .peers import require_peer

ROOT = Path(__file__).parents[1]
#: The base environment may take this much disk.
BASE_BYTES = 230e6


def run(*command: object, cwd: Path) -> str:
    """Run a command in a clean environment; its output, or a failure that shows it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a clone would have it: what git knows, with today's content."""
    folder = tmp_path_factory.mktemp("fresh") / "lfmri"
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def base(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the base alone, installed from the wheel."""
    folder = tmp_path_factory.mktemp("base")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    run(folder / "env" / "bin" / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, clone, cwd=folder)
    (wheel,) = folder.glob("lfmri-*.whl")
    run(folder / "env" / "bin" / "pip", "install", "--quiet", wheel, cwd=folder)
    return folder


def oldest_python() -> str | None:
    """An interpreter of the oldest Python that is promised, JetPack 6's; a shim that only says no does not count."""
    installed = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.10.*/bin/python"))
    for python in ("python3.10", *map(str, installed)):
        with suppress(OSError):
            done = subprocess.run([python, "-c", "import sys, venv; print(sys.version_info[:2])"], capture_output=True)
            if done.stdout.strip() == b"(3, 10)":
                return python
    return None


def test_the_base_enhances_the_same_with_the_oldest_python(base: Path, tmp_path: Path) -> None:
    python = oldest_python()
    require_peer("Python 3.10", python is not None)
    (wheel,) = base.glob("lfmri-*.whl")
    run(python, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    pip = (base / "env" / "bin" / "pip", "--python", tmp_path / "env" / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)  # most of what it brings is never imported
    data = np.random.default_rng(0).gamma(2, 40, (24, 24, 8))
    nib.Nifti1Image(data.astype(np.int16), np.diag([1.0, 1, 5, 1])).to_filename(tmp_path / "scan.nii.gz")
    for name, folder in (("new", base), ("old", tmp_path)):
        command = (folder / "env" / "bin" / "lfmri", "enhance", tmp_path / "scan.nii.gz", "-o")
        run(*command, tmp_path / f"{name}.nii.gz", "--backend", "onnxruntime", cwd=tmp_path)
    new, old = (
        np.asarray(nib.Nifti1Image.from_filename(tmp_path / f"{n}.nii.gz").dataobj, dtype=float) for n in ("new", "old")
    )
    assert np.abs(old - new).max() <= 2, "other releases of ONNX Runtime may differ by a unit or two of the scan"
    assert new.std() > 10
    settings = run(tmp_path / "env" / "bin" / "python", "-c", "import lfmri_runtime.console.settings", cwd=tmp_path)
    assert settings == ""


def test_the_wheel_holds_packages_and_model_files_and_nothing_else(base: Path) -> None:
    (wheel,) = base.glob("lfmri-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "lfmri",
        "lfmri_runtime",
        "lfmri_export",
        "lfmri_trainer",
    }
    for needed in ("bundles/iqt-cfm-t1w/step.onnx", "lpips/alexnet-v0.1.onnx", "sample/lowfield.nii.gz"):
        assert f"lfmri_runtime/data/{needed}" in names
    assert not [name for name in names if name.endswith((".pyc", ".ckpt"))]


def test_the_base_is_small_and_has_neither_torch_nor_scipy(base: Path) -> None:
    (packages,) = (base / "env" / "lib").glob("python*/site-packages")
    files = [path for path in (base / "env").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < BASE_BYTES
    installed = {p.name.split("-")[0].lower() for p in packages.glob("*.dist-info")}
    assert not installed & {"torch", "scipy", "lightning", "scikit_image", "pillow"}


def test_the_base_enhances_a_scan(base: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(0, 5, (24, 28, 6)) + 200 * (np.indices((24, 28, 6)).sum(0) % 30 > 10)
    nib.Nifti1Image(data.astype(np.int16), np.diag([1.0, 1, 5, 1])).to_filename(base / "scan.nii.gz")
    options = ("--samples", 2, "--steps", 2, "--uncertainty", base / "std.nii.gz", "--seed", 3)
    run(base / "env" / "bin" / "lfmri", "enhance", base / "scan.nii.gz", "-o", base / "out.nii.gz", *options, cwd=base)
    image = nib.Nifti1Image.from_filename(base / "out.nii.gz")
    assert image.shape == (24, 28, 26)
    assert json.loads((base / "out.json").read_text())["bundle"]["name"] == "iqt-cfm-t1w"
    assert nib.Nifti1Image.from_filename(base / "std.nii.gz").get_fdata().max() > 0


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("evaluate", "out.nii.gz", "scan.nii.gz"), "pip install 'lfmri[evaluate]'"),
        (("enhance", "scan.nii.gz", "-o", "again.nii.gz", "--report", "page.html"), "pip install 'lfmri[evaluate]'"),
        (("train", "--pairs", "pairs", "--run", "run"), "pip install 'lfmri[train]'"),
        (("simulate", "--subjects", ".", "--out", "pairs", "--preset", "siqt-k4"), "pip install 'lfmri[train]'"),
        (("export", "run", "--out", "bundle"), "pip install 'lfmri[export]'"),
    ],
)
def test_a_missing_extra_names_its_install_line(base: Path, command: tuple[str, ...], line: str) -> None:
    done = subprocess.run(
        [base / "env" / "bin" / "lfmri", *command], cwd=base, capture_output=True, text=True, check=False
    )
    assert done.returncode == 5
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_make_demo_enhances_the_sample_and_beats_interpolation(clone: Path) -> None:
    sample = clone / "runtime" / "lfmri_runtime" / "data" / "sample"
    # The middle of the head, whole in its slices: a third of the work. The whole sample is test_benchmark's (--quick).
    for name, part in (("lowfield", slice(12, 28)), ("highfield", slice(48, 109)), ("mask", slice(48, 109))):
        path = sample / f"{name}.nii.gz"
        nib.Nifti1Image.from_filename(path).slicer[..., part].to_filename(path)
    out = run("make", "demo", cwd=clone)
    for word in ("interpolation", "enhanced", "PSNR", "SSIM", "LPIPS"):
        assert word in out
    for name in ("enhanced.nii.gz", "enhanced.json", "report.html"):
        assert (clone / "out" / name).stat().st_size > 0
    scores = json.loads((clone / "out" / "scores.json").read_text())
    methods = scores["methods"]
    mean = {name: {key: entry["mean"] for key, entry in methods[name]["summary"].items()} for name in methods}
    assert mean["enhanced"]["psnr_db"] > mean["interpolation"]["psnr_db"]
    assert mean["enhanced"]["ssim"] > mean["interpolation"]["ssim"]
    assert mean["enhanced"]["lpips"] < mean["interpolation"]["lpips"]
    environment = clone / "build" / "demo-env"
    assert not list(environment.glob("lib/python*/site-packages/torch"))
