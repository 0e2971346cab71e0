"""BIDS derivatives as the watched folder's output: names, keys, and what the BIDS validator says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lfmri.cli import run
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import sha256_file
from lfmri_runtime.folder.bids import parse
from lfmri_runtime.volume import read_scan

from .bundles import MakeBundle
from .heads import scan_of
from .peers import require_peer

VALIDATOR = "bids-validator-deno"


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".lfmri.lock"}


@pytest.fixture
def watch(tmp_path: Path, make_bundle: MakeBundle) -> Callable[..., int]:
    """Run `lfmri watch --once --layout bids`, with more of a configuration."""
    (tmp_path / "lfmri.toml").write_text("[model]\nsamples = 2\n[output]\nuncertainty = true\n")
    bundle = make_bundle("noisy")

    def watch(*more: str) -> int:
        folders = ["--in", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        return run(["watch", *folders, "--once", "--layout", "bids", "--bundle", str(bundle), *more])

    return watch


@pytest.fixture
def drop(tmp_path: Path) -> Callable[..., Path]:
    """Write a scan into IN."""

    def drop(name: str, **header: Any) -> Path:
        data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
        make = nib.MGHImage if name.endswith(".mgz") else nib.Nifti1Image
        image = make(data, affine)
        if make is nib.Nifti1Image:
            image.header.set_xyzt_units("mm", "sec")
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        image.to_filename(path)
        return path

    return drop


def test_a_derivative_data_set_passes_the_validator(
    tmp_path: Path, watch: Callable[..., int], drop: Callable[..., Path]
) -> None:
    source = sha256_file(drop("sub-01_T1w.nii.gz"))
    drop("sub-02_ses-pre_acq-lowfield_run-1_part-mag_T2w.nii")
    drop("sub-03_FLAIR.mgz")
    (tmp_path / "in" / "sub-01_T1w.json").write_text("{}")
    assert watch("--config", str(tmp_path / "lfmri.toml")) == 0
    out = tmp_path / "out"
    stems = (
        "sub-01/anat/sub-01_desc-{}_T1w",
        "sub-02/ses-pre/anat/sub-02_ses-pre_acq-lowfield_run-1_part-mag_desc-{}_T2w",
        "sub-03/anat/sub-03_desc-{}_FLAIR",
    )
    images = {f"{stem.format('enhanced')}{end}" for stem in stems for end in (".nii.gz", ".json")}
    images |= {f"{stem.format('uncertainty')}{end}" for stem in stems for end in (".nii.gz", ".json")}
    names = ("sub-01_T1w", "sub-02_ses-pre_acq-lowfield_run-1_part-mag_T2w", "sub-03_FLAIR")
    around = {"dataset_description.json", "README.md", ".bidsignore"}
    assert tree(out) == images | around | {f"{name}.result.json" for name in names}
    assert (tmp_path / "in" / "sub-01_T1w.json").exists(), "files of other kinds are left"

    description = json.loads((out / "dataset_description.json").read_text())
    assert (description["DatasetType"], description["DatasetLinks"]) == ("derivative", {"raw": "../in"})
    sidecar = json.loads((out / "sub-01/anat/sub-01_desc-enhanced_T1w.json").read_text())
    assert sidecar["input"]["sha256"] == source
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert [made["Name"] for made in sidecar["GeneratedBy"]] == ["lfmri"]
    assert sidecar["bundle"]["sha256"] in sidecar["GeneratedBy"][0]["Description"]
    assert read_scan(out / "sub-03/anat/sub-03_desc-enhanced_FLAIR.nii.gz").voxel_size == pytest.approx((1, 1, 1))
    assert issues(out) == []
    (out / "sub-01/anat/sub-01_desc-enhanced_T1w.json").write_text("{}")
    assert issues(out) == ["SIDECAR_KEY_REQUIRED"], "the validator can fail"


def issues(data_set: Path) -> list[str]:
    """Codes of what the validator calls an error."""
    beside = Path(sys.executable).with_name(VALIDATOR)
    program = str(beside) if beside.exists() else shutil.which(VALIDATOR)
    require_peer(VALIDATOR, program is not None)
    done = subprocess.run([str(program), "--json", data_set], capture_output=True, text=True, check=False, timeout=120)
    found = json.loads(done.stdout)["issues"]["issues"]
    return [issue["code"] for issue in found if issue.get("severity") == "error"]


def test_a_name_that_came_twice_and_a_series_are_refused_with_the_reason(
    tmp_path: Path, watch: Callable[..., int], drop: Callable[..., Path]
) -> None:
    drop("sub-01_T1w.nii.gz")
    assert watch() == 0
    before = tree(tmp_path / "out")
    drop("sub-01_T1w.nii.gz")
    (tmp_path / "in" / "series").mkdir()
    assert watch() == 3
    failed = tmp_path / "in" / "failed"
    assert "give it a run-2" in (failed / "sub-01_T1w-2.nii.gz.reason.txt").read_text()
    assert "DICOM has no place" in (failed / "series.reason.txt").read_text()
    assert tree(tmp_path / "out") == before


def test_a_scan_whose_place_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, watch: Callable[..., int], drop: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    drop("sub-01_T1w.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub-01").write_text("theirs")
    drop("sub-02_T1w.nii.gz")
    assert watch() == 6
    assert "not writable" in capsys.readouterr().err
    assert tree(tmp_path / "in") == {"sub-01_T1w.nii.gz", "done/sub-02_T1w.nii.gz"}
    assert (tmp_path / "out" / "sub-01").read_text() == "theirs"
    (tmp_path / "out" / "sub-01").unlink()
    assert watch() == 0
    assert tree(tmp_path / "in") == {"done/sub-01_T1w.nii.gz", "done/sub-02_T1w.nii.gz"}


def test_a_data_set_of_another_kind_is_not_written_into(
    tmp_path: Path, watch: Callable[..., int], drop: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = drop("sub-01_T1w.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text('{"DatasetType": "raw"}')
    assert watch() == 3
    assert "no derivative data set" in capsys.readouterr().err
    assert path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "scan.nii.gz",
        "T1w.nii.gz",
        "sub-_T1w.nii",
        "sub-01.nii",
        "sub-01_T1w_acq-a.nii",
        "sub-01_run-1_acq-a_T1w.nii",
        "sub-01_desc-other_T1w.nii",
        "sub-01_T1w-2.nii",
        "sub-0/1_T1w.nii",
        "sub-01_bold.nii",
        "sub-01_T1w\n.nii",
    ],
)
def test_what_is_no_bids_name_is_refused(name: str) -> None:
    with pytest.raises(InputRefused, match="no BIDS name"):
        parse(name)


def test_parts_that_are_no_magnitude_are_refused() -> None:
    with pytest.raises(InputRefused, match="part-phase is no magnitude"):
        parse("sub-01_part-phase_T1w.nii.gz")
    assert parse("sub-01_part-mag_T1w.nii.gz") == {"sub": "01", "part": "mag", "contrast": "T1w"}
