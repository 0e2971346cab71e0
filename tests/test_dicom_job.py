"""Folders of DICOM files through the command line: what is chosen, what is written, what is said."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from lfmri.cli import run
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.dicom import job
from lfmri_runtime.dicom.job import choose
from lfmri_runtime.dicom.series import read_series
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import InputRefused

from .bundles import MakeBundle
from .dicoms import SECRETS, SERIES, classic, enhanced


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle("noisy")


class Lines:
    """Runs `lfmri enhance` in this process and keeps what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
        self.capsys, self.bundle = capsys, bundle

    def __call__(self, *arguments: object, code: int = 0) -> tuple[str, str]:
        found = run(["enhance", "--bundle", str(self.bundle), "--threads", "1", *map(str, arguments)])
        out, err = self.capsys.readouterr()
        assert found == code, err
        return out, err


@pytest.fixture
def enhance(capsys: pytest.CaptureFixture[str], bundle: Path) -> Lines:
    return Lines(capsys, bundle)


def localiser(ds: Dataset, k: int) -> None:
    ds.SeriesInstanceUID, ds.SeriesDescription = f"{SERIES}.9", "localizer"


def test_a_folder_is_enhanced_and_the_rest_is_named(enhance: Lines, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    paths = classic(source / "deep")
    classic(source / "loc", change=localiser)
    (source / "note.txt").write_text("no DICOM")
    (source / ".hidden").write_text("no DICOM")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    said, notes = enhance(source, "-o", out, "--samples", 2, "--uncertainty", tmp_path / "std", "--label", "ours")
    assert notes.splitlines() == [
        "lfmri: note: 1 of 25 files are no DICOM images or damaged, and were left out",
        "lfmri: note: series 2 of 2 (12 files) was passed by: a localiser",
        "lfmri: note: the bundle has no calibration for 1 Euler step: the uncertainty is the bare standard deviation "
        "over samples",
    ]
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    assert said == f"wrote {folder}\n"
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    series, derived = read_series(paths), read_series(sorted(folder.iterdir()))
    expected = Enhancer(open_bundle(enhance.bundle)).enhance(series.data, series.affine, samples=2, grid="input")
    np.testing.assert_allclose(derived.data, expected.mean, atol=0.26)
    deviation = read_series(sorted((tmp_path / "std" / folder.name).iterdir()))
    np.testing.assert_allclose(deviation.data, expected.std, atol=0.26)
    assert derived.uid == folder.name
    assert derived.datasets[0].SeriesDescription == "T1 SECRET ours"
    text = (out / f"{folder.name}.json").read_text()
    document = json.loads(text)
    assert document["input"] == {"sha256": series.sha256, "shape": [20, 26, 12], "voxel_size_mm": [1.6, 1.3, 5.0]}
    assert (document["grid"], document["samples"]) == ("input", 2)
    assert not any(word in text + said + notes for word in SECRETS)


def test_a_series_that_cannot_be_read_does_not_stop_the_others(enhance: Lines, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    cut = classic(source / "a")[5]
    cut.write_bytes(cut.read_bytes()[:-100])

    def other(ds: Dataset, k: int) -> None:
        ds.SeriesInstanceUID = f"{SERIES}.9"

    classic(source / "b", change=other)
    said, notes = enhance(source, "-o", out, code=3)
    assert said.startswith("wrote ")
    assert said.count("\n") == 1
    note, last = notes.splitlines()
    assert note.startswith("lfmri: note: series 1 of 2 (12 files) was refused: ")
    assert last == "lfmri: " + note.partition("refused: ")[2]


def test_one_file_of_frames_is_a_scan(enhance: Lines, tmp_path: Path) -> None:
    path = enhanced(tmp_path / "frames")
    out = tmp_path / "out"
    _, notes = enhance(path, "-o", out, "--grid", "isotropic")
    assert notes == ""
    (folder,) = [path for path in out.iterdir() if path.is_dir()]
    (written,) = folder.iterdir()
    assert read_series([written]).voxel_size == pytest.approx((1, 1, 1))
    again, _ = enhance(folder, "-o", tmp_path / "again", code=3)
    assert again == ""


def test_several_scans_of_both_kinds_go_into_a_folder(enhance: Lines, tmp_path: Path, make_nifti: Any) -> None:
    classic(tmp_path / "in")
    scan = make_nifti("scan.nii.gz")
    enhance(tmp_path / "in", scan, "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"in", "scan.nii.gz", "scan.json"}
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["grid"] == "isotropic"
    empty = make_nifti("empty.nii.gz", data=np.zeros((12, 10, 8)))
    said, notes = enhance(empty, scan, "-o", tmp_path / "rest", code=3)
    assert said == f"wrote {tmp_path / 'rest' / 'scan.nii.gz'}\n"
    assert notes.startswith("lfmri: ")
    assert "empty.nii.gz" in notes
    assert {path.name for path in (tmp_path / "rest").iterdir()} == {"scan.nii.gz", "scan.json"}


@pytest.mark.parametrize(("scan", "place"), [(".", "in"), ("..", "in/deep")])
def test_a_scan_without_a_name_of_its_own_gets_its_folders(
    enhance: Lines, tmp_path: Path, make_nifti: Any, monkeypatch: pytest.MonkeyPatch, scan: str, place: str
) -> None:
    classic(tmp_path / "in" / "deep")
    link = tmp_path / "link.nii.gz"
    link.symlink_to(make_nifti("scan.nii.gz"))
    monkeypatch.chdir(tmp_path / place)
    enhance(scan, link, "-o", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"in", "link.nii.gz", "link.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "link.nii.gz", "scan.nii.gz", "out"}


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        (["-o", "in"], 2, "holds the originals"),
        (["-o", "out", "--uncertainty", "in", "--samples", "2"], 2, "holds the originals"),
        (["-o", "out", "--uncertainty", "x/../out", "--samples", "2"], 2, "holds another output"),
        (["-o", "out", "--mask", "mask.nii"], 2, "--mask, --report and --residual take NIfTI"),
        (["-o", "out", "--report", "page.html"], 2, "--mask, --report and --residual take NIfTI"),
        (["-o", "out", "--label", "a\\b"], 2, "printable ASCII"),
        (["-o", "in/001.dcm"], 6, "not writable"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_the_work(
    enhance: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    classic(tmp_path / "in")
    _, notes = enhance("in", *options, code=code)
    assert match in notes
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_label_is_for_dicom(enhance: Lines, tmp_path: Path, make_nifti: Any) -> None:
    _, notes = enhance(make_nifti("scan.nii.gz"), "-o", tmp_path / "out.nii", "--label", "ours", code=2)
    assert "--label is for DICOM" in notes


def test_a_folder_with_nothing_to_enhance_is_refused(
    enhance: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    _, notes = enhance(source, "-o", tmp_path / "out", code=3)
    assert "no series to enhance; no files; give another folder" in notes
    paths = classic(source)
    paths[3].unlink()
    _, notes = enhance(source, "-o", tmp_path / "out", code=3)
    assert "series 1 of 1 (11 files) was passed by: slices 5 to 10 mm apart" in notes
    monkeypatch.setattr(job, "MAX_FOLDER_FILES", 5)
    with pytest.raises(InputRefused, match="over 5 files"):
        choose(source)


def test_the_sidecar_comes_last(enhance: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise InputRefused("full")

    classic(tmp_path / "in")
    monkeypatch.setattr(job, "write_derived", full)
    enhance(tmp_path / "in", "-o", tmp_path / "out", code=3)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_pydicom_the_extra_is_named(enhance: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classic(tmp_path / "in")
    for name in [name for name in sys.modules if name.startswith("lfmri_runtime.dicom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    _, notes = enhance(tmp_path / "in", "-o", tmp_path / "out", code=5)
    assert "pip install 'lfmri[dicom]'" in notes
