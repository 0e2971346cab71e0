"""The command line: its help, its messages and exit codes, and runs that are cut short."""

import csv
import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import pytest

from lfmri.cli import cli, run
from lfmri_runtime.contract import SCHEMA
from lfmri_runtime.volume import read_scan

from .bundles import MakeBundle, change_contract
from .heads import head, places, scan_of
from .phantom import phantom, save_subject

MakeNifti = Callable[..., Path]
SECRET = "DOE^JANE"
PRESET = ("--preset", "siqt-k3")
AFFINE = np.diag([1.5, 1.2, 5.0, 1.0])


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle()


@pytest.fixture
def scan(make_nifti: MakeNifti) -> Path:
    data, affine = scan_of(AFFINE)
    return make_nifti("scan.nii.gz", data=data, affine=affine, dtype=np.float32)


class Lines:
    """Runs commands in this process and keeps what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        found = run([str(argument) for argument in arguments])
        self.out, self.err = self.capsys.readouterr()
        assert found == code, self.err
        return self.out

    def refuse(self, *arguments: object, code: int) -> str:
        """Run what fails: one line on stderr, nothing on stdout."""
        assert self(*arguments, code=code) == ""
        assert self.err.startswith("lfmri: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err


@pytest.fixture
def lfmri(capsys: pytest.CaptureFixture[str]) -> Lines:
    return Lines(capsys)


# Help and usage


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_and_option_has_help(lfmri: Lines, name: str) -> None:
    command = cli.commands[name]
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert options
    shown = lfmri(name, "--help")
    for option in options:
        assert option.help, option.name
        assert option.opts[-1] in shown
    assert shown == lfmri(name, "-h")


def test_help_lists_every_command_and_the_exit_codes(lfmri: Lines) -> None:
    shown = lfmri("--help")
    for command in cli.commands:
        assert f"\n  {command} " in shown
    for code in ("0 done", "2 usage", "3 input refused", "4 bundle refused", "5 back end", "6 try again later", "130"):
        assert code in " ".join(shown.split())
    assert lfmri() == shown
    assert "version" in lfmri("--version")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("enlarge",), "No such command 'enlarge'"),
        (("enhance",), "Missing argument 'SCAN...'"),
        (("enhance", "a.nii"), "Missing option '-o'"),
        (("enhance", "a.nii", "-o", "b.nii", "--sed", "1"), "--sed"),
        (("enhance", "a.nii", "-o", "b.nii", "--steps", "two"), "'two' is not a valid integer"),
        (("enhance", "a.nii", "-o", "b.nii", "--threads", "-1"), "-1 is not in the range"),
        (("enhance", "a.nii", "-o", "b.nii", "--uncertainty", "c.nii"), "expected --samples of at least 2"),
        (("enhance", "a.nii", "b.nii", "-o", "c", "--mask", "m.nii"), "belong to one scan"),
        (("enhance", "a.nii", "-o", "b.png"), "b.png: unknown kind of image"),
        (("train",), "expected --run RUN"),
        (("train", "--run", "r"), "expected --pairs DIR"),
        (("train", "--resume", "r", "--seed", "1"), "expected no other option beside it"),
        (("train", "--run", "r", "--pairs", "p", "--preset", "iqt"), "--preset is 'iqt'; expected one of iqt-cfm,"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    lfmri: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert match in lfmri.refuse(*arguments, code=2)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_simulation_is_refused(lfmri: Lines, tmp_path: Path) -> None:
    save_subject(tmp_path / "subjects" / "one", phantom())
    message = lfmri.refuse("simulate", "--subjects", tmp_path / "subjects", "--out", tmp_path / "o", *PRESET, code=2)
    assert "siqt-k3" in message
    assert "siqt-k4" in message
    assert not (tmp_path / "o").exists()


# Enhance: what is good


def test_a_scan_is_enhanced(lfmri: Lines, bundle: Path, scan: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "new" / "out.nii.gz", scan.read_bytes()
    assert lfmri("enhance", scan, "-o", out, "--bundle", bundle) == f"wrote {out}\n"
    assert lfmri.err == ""
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.json", "out.nii.gz"]
    written = read_scan(out)
    there = head(places(written.data.shape, written.affine))
    assert np.abs(written.data - there).max() < 0.06 * there.max()
    assert json.loads((out.parent / "out.json").read_text())["steps"] == 1
    assert scan.read_bytes() == before


def test_every_option_reaches_the_core(lfmri: Lines, make_bundle: MakeBundle, scan: Path, tmp_path: Path) -> None:
    out, std, page = tmp_path / "out.nii", tmp_path / "std.nii", tmp_path / "page.html"
    lfmri(
        *("enhance", scan, "-o", out, "--bundle", make_bundle("noisy"), "--steps", 2, "--samples", 3, "--seed", 4),
        *("--uncertainty", std, "--grid", "input", "--thick-axis", "A", "--report", page, "--threads", 1),
    )
    document = json.loads((tmp_path / "out.json").read_text())
    found = [document[key] for key in ("steps", "samples", "seed", "grid", "thick_axis")]
    assert found == [2, 3, 4, "input", "A"]
    assert read_scan(out).data.shape == read_scan(std).data.shape == read_scan(scan).data.shape
    assert "Uncertainty" in page.read_text()


def test_several_scans_go_into_a_folder(lfmri: Lines, bundle: Path, scan: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.nii.gz"
    shutil.copy(scan, other)
    out = tmp_path / "out"
    printed = lfmri("enhance", scan, other, "-o", out, "--bundle", bundle)
    assert printed == f"wrote {out / 'scan.nii.gz'}\nwrote {out / 'other.nii.gz'}\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == ["other.json", "other.nii.gz", "scan.json", "scan.nii.gz"]


def test_the_same_seed_writes_the_same_bytes(lfmri: Lines, make_bundle: MakeBundle, scan: Path, tmp_path: Path) -> None:
    noisy = make_bundle("noisy")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        lfmri("enhance", scan, "-o", tmp_path / f"{name}.nii.gz", "--bundle", noisy, "--seed", seed)
    first, again, other = ((tmp_path / f"{name}.nii.gz").read_bytes() for name in "abc")
    assert first == again != other


def test_a_conflict_in_the_header_is_noted_and_the_scan_enhanced(
    lfmri: Lines, bundle: Path, make_nifti: MakeNifti, tmp_path: Path
) -> None:
    data, affine = scan_of(AFFINE)
    path = make_nifti("scan.nii", data=data, affine=affine)
    header = bytearray(path.read_bytes())
    struct.pack_into("<f", header, 268, 40.0)  # qoffset_x
    path.write_bytes(header)
    assert lfmri("enhance", path, "-o", tmp_path / "out.nii", "--bundle", bundle)
    assert lfmri.err.startswith("lfmri: note: sform and qform in the header differ by up to ")
    assert lfmri.err.count("\n") == 1
    assert json.loads((tmp_path / "out.json").read_text())["notes"] == [lfmri.err[len("lfmri: note: ") :].strip()]


def test_no_name_of_a_patient_is_written_or_printed(
    lfmri: Lines, bundle: Path, make_nifti: MakeNifti, tmp_path: Path
) -> None:
    data, affine = scan_of(AFFINE)
    path = make_nifti(f"{SECRET}.nii", data=data, affine=affine, descrip=SECRET, aux_file=SECRET, intent_name=SECRET)
    out, page = tmp_path / "out.nii", tmp_path / "page.html"
    printed = lfmri("enhance", path, "-o", out, "--bundle", bundle, "--report", page)
    assert SECRET not in printed + lfmri.err
    for written in (tmp_path / "out.json", page):
        assert "DOE" not in written.read_text()
    broken = bytearray(path.read_bytes())
    struct.pack_into("<f", broken, 80, -1.0)  # pixdim[1]
    (tmp_path / "broken.nii").write_bytes(broken)
    assert SECRET not in lfmri.refuse("enhance", tmp_path / "broken.nii", "-o", out, code=3)


# Enhance: what is refused


def _missing(make: MakeNifti, folder: Path) -> Path:
    return folder / "nowhere.nii.gz"


def _text(make: MakeNifti, folder: Path) -> Path:
    path = folder / "scan.nii"
    path.write_text("no image " * 100)
    return path


def _truncated(make: MakeNifti, folder: Path) -> Path:
    path = make()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _patched(offset: int, code: str, *values: object) -> Callable[[MakeNifti, Path], Path]:
    def change(make: MakeNifti, folder: Path) -> Path:
        content = bytearray(make("scan.nii").read_bytes())
        struct.pack_into(code, content, offset, *values)
        (folder / "scan.nii.gz").write_bytes(gzip.compress(content))
        return folder / "scan.nii.gz"

    return change


def _holding(value: object, dtype: Any = np.float32) -> Callable[[MakeNifti, Path], Path]:
    def change(make: MakeNifti, folder: Path) -> Path:
        data = np.random.default_rng(1).random((12, 10, 8)).astype(dtype) + 1
        if value is not None:
            data[3, 4, 5] = value
        return make(data=data, dtype=dtype)

    return change


def _constant(value: float) -> Callable[[MakeNifti, Path], Path]:
    return lambda make, folder: make(data=np.full((12, 10, 8), value), dtype=np.float32)


BAD_SCANS: dict[str, tuple[Callable[[MakeNifti, Path], Path], str]] = {
    "missing": (_missing, "no such file; expected an image; check the path"),
    "not a NIfTI": (_text, "not a single-file NIfTI image"),
    "truncated": (_truncated, "the compressed data ends too early"),
    "a trillion voxels": (_patched(40, "<4h", 3, 10000, 10000, 10000), "the header promises 10000 x 10000 x 10000"),
    "4-D": (lambda make, folder: make(data=np.ones((6, 5, 4, 3))), "3 volumes (6 x 5 x 4 x 3); expected one; choose"),
    "zero-size axis": (_patched(42, "<h", 0), "0 x 10 x 8 voxels in the header"),
    "NaN": (_holding(np.nan), "1 of 960 voxels are NaN or infinite"),
    "infinity": (_holding(np.inf), "1 of 960 voxels are NaN or infinite"),
    "zeros": (_constant(0), "every voxel is zero"),
    "constant": (_constant(7), "every voxel has the same value"),
    "complex": (_holding(None, np.complex64), "voxels are complex numbers"),
    "negative zooms": (_patched(80, "<f", -1.5), "voxel sizes of -1.5 x 1.5 x 5 in the header"),
}


@pytest.mark.parametrize("kind", BAD_SCANS)
def test_a_bad_scan_is_refused(lfmri: Lines, bundle: Path, make_nifti: MakeNifti, tmp_path: Path, kind: str) -> None:
    make, match = BAD_SCANS[kind]
    path = make(make_nifti, tmp_path)
    assert match in lfmri.refuse("enhance", path, "-o", tmp_path / "out" / "a.nii.gz", "--bundle", bundle, code=3)
    assert str(path) in lfmri.err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_mask_is_refused(lfmri: Lines, bundle: Path, scan: Path, make_nifti: MakeNifti, tmp_path: Path) -> None:
    mask = make_nifti("mask.nii.gz")
    message = lfmri.refuse("enhance", scan, "-o", tmp_path / "o.nii", "--bundle", bundle, "--mask", mask, code=3)
    assert "resample it onto the scan" in message


def test_a_bad_bundle_is_refused(lfmri: Lines, make_bundle: MakeBundle, scan: Path, tmp_path: Path) -> None:
    changed, newer, corrupt = make_bundle(), make_bundle(), make_bundle()
    content = bytearray((changed / "step.onnx").read_bytes())
    content[len(content) // 2] ^= 4
    (changed / "step.onnx").write_bytes(content)
    change_contract(newer, lambda document: document.update(schema=SCHEMA + 1))
    (corrupt / "contract.json").write_bytes((corrupt / "contract.json").read_bytes()[:-40])
    expected = {
        changed: "step.onnx does not have the sha256 that its contract gives",
        newer: "update lfmri",
        corrupt: "does not have the sha256 that contract.sha256 gives",
        tmp_path / "nowhere": "expected a bundle that `lfmri export` made",
    }
    for folder, match in expected.items():
        assert match in lfmri.refuse("enhance", scan, "-o", tmp_path / "out.nii", "--bundle", folder, code=4)
    assert [path.name for path in tmp_path.iterdir()] == [scan.name]


def test_an_output_that_replaces_something_is_refused(lfmri: Lines, bundle: Path, scan: Path, tmp_path: Path) -> None:
    before = scan.read_bytes()
    assert "would replace an input" in lfmri.refuse("enhance", scan, "-o", scan, "--bundle", bundle, code=2)
    twin = tmp_path / "sub" / scan.name
    twin.parent.mkdir()
    shutil.copy(scan, twin)
    message = lfmri.refuse("enhance", scan, twin, "-o", tmp_path / "out", "--bundle", bundle, code=2)
    assert "would replace another output" in message
    mask = tmp_path / "mask.nii.gz"
    shutil.copy(scan, mask)
    assert "an input" in lfmri.refuse("enhance", scan, "-o", mask, "--mask", mask, "--bundle", bundle, code=2)
    assert scan.read_bytes() == before == mask.read_bytes()


def test_a_failing_disk_is_told_in_one_line(lfmri: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "/data/out")

    monkeypatch.setattr(cli, "main", full)
    assert "/data/out: No space left on device; free or mend it and try again" in lfmri.refuse("doctor", code=6)


def test_an_output_below_a_file_is_refused(lfmri: Lines, bundle: Path, scan: Path) -> None:
    assert "not writable" in lfmri.refuse("enhance", scan, "-o", scan / "out.nii.gz", "--bundle", bundle, code=6)


@pytest.mark.parametrize("limit", ["steps", "samples"])
def test_settings_out_of_range_are_refused(lfmri: Lines, bundle: Path, scan: Path, tmp_path: Path, limit: str) -> None:
    message = lfmri.refuse("enhance", scan, "-o", tmp_path / "o.nii", "--bundle", bundle, f"--{limit}", 0, code=2)
    assert f"--{limit} is 0; expected 1 to 1000" in message


# Evaluate and report


@pytest.fixture
def trio(make_nifti: MakeNifti, bundle: Path, lfmri: Lines, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A low-field scan, what enhancing makes of it, and the truth on the enhanced scan's grid."""
    data, affine = scan_of(np.diag([1.0, 1.0, 4.0, 1.0]), (40, 36, 10))
    low = make_nifti("low.nii.gz", data=data, affine=affine, dtype=np.float32)
    enhanced = tmp_path / "enhanced.nii.gz"
    lfmri("enhance", low, "-o", enhanced, "--bundle", bundle)
    grid = read_scan(enhanced)
    truth = head(places(grid.data.shape, grid.affine))
    return low, enhanced, make_nifti("truth.nii.gz", data=truth, affine=grid.affine, dtype=np.float32)


def psnr_of_slices(image: Path, reference: Path, white: float) -> dict[int, float]:
    """PSNR of each coronal slice, written again."""
    first, second = (read_scan(path).data.astype(float).clip(0) / white for path in (image, reference))
    squares = ((first - second) ** 2).mean(axis=(0, 2))
    return {n: float(-10 * np.log10(square)) for n, square in enumerate(squares)}


def test_scores_without_a_sidecar(lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    low, enhanced, truth = trio
    (tmp_path / "enhanced.json").unlink()
    data = read_scan(truth).data
    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image((data > 100).astype(np.uint8), read_scan(truth).affine), mask)
    table, document = tmp_path / "scores.csv", tmp_path / "scores.json"
    shown = lfmri(
        *("evaluate", enhanced, truth, "--mask", mask, "--input", low, "--csv", table, "--json", document),
    )
    assert lfmri.err == ""
    assert "interpolation" in shown
    assert "PSNR in mask" in shown
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["method"] for row in rows} == {"interpolation", "enhanced"}
    expected = psnr_of_slices(enhanced, truth, float(np.percentile(data[data > 100], 99)))
    for row in rows:  # the bundle interpolates, so that both methods agree
        assert float(row["psnr_db"]) == pytest.approx(expected[int(row["slice"])], abs=1e-2)
    assert len(rows) == 2 * len({row["slice"] for row in rows}) > 20
    content = json.loads(document.read_text())
    assert content["plane"] == "coronal"
    assert content["masked"] is True
    mean = np.mean([float(row["psnr_db"]) for row in rows if row["method"] == "enhanced"])
    assert content["methods"]["enhanced"]["summary"]["psnr_db"]["mean"] == pytest.approx(mean)


def test_scores_with_a_sidecar_use_its_scale(lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, enhanced, truth = trio
    lfmri("evaluate", enhanced, truth, "--json", tmp_path / "a.json", "--plane", "axial")
    brighter = tmp_path / "brighter.nii.gz"
    scan = nib.load(truth)
    nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32) * 7, scan.affine), brighter)
    lfmri("evaluate", enhanced, brighter, "--json", tmp_path / "b.json", "--plane", "axial")
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["plane"] == "axial"
    # The tissue means map the reference onto the standard scale, whatever its unit.
    for key, value in first["methods"]["enhanced"]["summary"].items():
        assert second["methods"]["enhanced"]["summary"][key]["mean"] == pytest.approx(value["mean"], abs=1e-3)
    (tmp_path / "enhanced.json").write_text("{")
    assert "enhance again" in lfmri.refuse("evaluate", enhanced, truth, code=3)
    (tmp_path / "enhanced.json").write_text('{"Manufacturer": "of the scanner", "RepetitionTime": 2}')
    lfmri("evaluate", enhanced, truth, "--json", tmp_path / "foreign.json")
    (tmp_path / "enhanced.json").unlink()
    lfmri("evaluate", enhanced, truth, "--json", tmp_path / "none.json")
    assert (tmp_path / "foreign.json").read_text() == (tmp_path / "none.json").read_text()


def test_a_reference_on_another_grid_is_refused(
    lfmri: Lines, trio: tuple[Path, Path, Path], make_nifti: MakeNifti
) -> None:
    low, enhanced, truth = trio
    assert "does not coincide with" in lfmri.refuse("evaluate", enhanced, low, code=3)
    image = nib.load(truth)
    for scale, code in ((1.0005, 0), (1.01, 3)):
        drifting = make_nifti(
            "drifting.nii.gz", data=image.get_fdata(), affine=image.affine @ np.diag([scale] * 3 + [1])
        )
        lfmri("evaluate", enhanced, drifting, code=code)
    data, affine = scan_of(np.eye(4), (40, 36, 37))
    affine[0, 3] += 500
    far = make_nifti("far.nii.gz", data=data, affine=affine, dtype=np.float32)
    assert "does not" in lfmri.refuse("evaluate", enhanced, far, code=3)


def test_a_shifted_reference_is_cut_to_the_overlap(lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, enhanced, truth = trio
    (tmp_path / "enhanced.json").unlink()
    scan = read_scan(truth)
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (3, 2, 1)
    cropped = scan.data[3:, 2:, 1:][::-1]  # flipped and moved: the same places
    affine = affine @ np.array([[-1, 0, 0, cropped.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(cropped), affine), tmp_path / "cropped.nii.gz")
    lfmri("evaluate", enhanced, tmp_path / "cropped.nii.gz", "--json", tmp_path / "a.json")
    summary = json.loads((tmp_path / "a.json").read_text())["methods"]["enhanced"]["summary"]
    assert summary["psnr_db"]["mean"] > 30


def test_slices_are_numbered_as_the_enhanced_scans(lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, enhanced, truth = trio
    scan = read_scan(truth)
    data, affine = scan.data.copy(), scan.affine.copy()
    data[:, 17] /= 2
    affine[:3, 3] += affine[:3, :3] @ (3, 5, 1)
    part, table, document, page = (tmp_path / f"part.{kind}" for kind in ("nii", "csv", "scores", "html"))
    nib.save(nib.Nifti1Image(data[3:, 5:, 1:-2], affine), part)
    lfmri("evaluate", enhanced, part, "--csv", table, "--json", document)
    slices = json.loads(document.read_text())["methods"]["enhanced"]["slices"]
    for rows in (list(csv.DictReader(table.read_text().splitlines())), slices):
        assert int(min(rows, key=lambda row: float(row["psnr_db"]))["slice"]) == 17
    lfmri("report", enhanced, "-o", page, "--reference", part)
    assert "coronal slice 21 of 36" in page.read_text(), "the middle of 31 slices behind 5 that were cut off"


def test_a_mask_may_cover_everything(lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, enhanced, truth = trio
    (tmp_path / "enhanced.json").unlink()
    image, mask = nib.load(truth), tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), mask)
    assert "PSNR in mask" in lfmri("evaluate", enhanced, truth, "--mask", mask)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), mask)
    assert "every voxel is zero" in lfmri.refuse("evaluate", enhanced, truth, "--mask", mask, code=3)


def test_scores_are_written_before_they_are_shown(
    lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(figures: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lfmri.tables.print_scores", broken)
    _, enhanced, truth = trio
    written = [tmp_path / "a.csv", tmp_path / "b.json"]
    lfmri.refuse("evaluate", enhanced, truth, "--csv", written[0], "--json", written[1], code=6)
    assert all(path.is_file() for path in written)


def test_what_the_terminals_encoding_lacks_is_spelt_out(
    trio: tuple[Path, Path, Path], bundle: Path, tmp_path: Path
) -> None:
    def said(*arguments: object) -> bytes:
        command = [sys.executable, "-m", "lfmri", *map(str, arguments)]
        environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    low, enhanced, truth = trio
    assert rb"PSNR (dB) \u2191" in said("evaluate", enhanced, truth)
    assert said("enhance", low, "-o", tmp_path / "Ω.nii.gz", "--bundle", bundle).endswith(b"\\u03a9.nii.gz\n")


def test_a_report_is_written(lfmri: Lines, trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    low, enhanced, truth = trio
    page = tmp_path / "page.html"
    assert lfmri("report", enhanced, "-o", page, "--input", low, "--reference", truth) == f"wrote {page}\n"
    text = page.read_text()
    for word in ("Interpolation", "Enhanced", "Reference", "Error of enhanced", "PSNR", "by-hand"):
        assert word in text
    (tmp_path / "enhanced.json").unlink()
    lfmri("report", enhanced, "-o", page)
    assert "PSNR" not in page.read_text()


def test_reports_and_scores_replace_no_input(lfmri: Lines, trio: tuple[Path, Path, Path]) -> None:
    low, enhanced, truth = trio
    kept = [*trio, enhanced.with_name("enhanced.json")]
    before = [path.read_bytes() for path in kept]
    for arguments in (
        ("report", enhanced, "-o", enhanced),
        ("report", enhanced, "-o", low, "--input", low),
        ("evaluate", enhanced, truth, "--csv", truth),
        ("evaluate", enhanced, truth, "--json", "a", "--csv", "a"),
        ("evaluate", enhanced, truth, "--json", kept[-1]),
        ("evaluate", enhanced, truth, "--csv", truth.with_name("truth.json")),
        ("report", enhanced, "-o", kept[-1]),
    ):
        assert "would replace" in lfmri.refuse(*arguments, code=2)
    assert [path.read_bytes() for path in kept] == before
    assert "a folder; expected one image file" in lfmri.refuse("evaluate", ".", truth, code=3)
    assert "not writable" in lfmri.refuse("evaluate", enhanced, truth, "--csv", low / "a.csv", code=6)


# Extras


def run_without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.modules[{package!r}] = None; from lfmri.cli import run; sys.exit(run(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("skimage", "evaluate", ("evaluate", "a.nii", "b.nii")),
        ("skimage", "evaluate", ("report", "a.nii", "-o", "a.html")),
        ("torch", "train", ("train", "--pairs", "p", "--run", "r")),
        ("SimpleITK", "train", ("simulate", "--subjects", "s", "--out", "o", "--preset", "siqt-k4")),
        ("torch", "export", ("export", "run", "--out", "bundle")),
    ],
)
def test_a_missing_extra_names_the_line_that_installs_it(package: str, extra: str, arguments: tuple[str, ...]) -> None:
    done = run_without(package, *arguments)
    assert done.returncode == 5
    expected = f"lfmri: {package} is not installed; it comes with: pip install 'lfmri[{extra}]'\n"
    assert done.stderr == expected


def test_enhancing_and_help_need_no_extra(bundle: Path, scan: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'skimage', 'PIL', 'onnx', 'lightning', 'SimpleITK', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from lfmri.cli import run\n"
        "assert run(['train', '--help']) == 0\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    arguments = ["enhance", str(scan), "-o", str(tmp_path / "out.nii"), "--bundle", str(bundle)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out.json").is_file()


# Cut short


def test_a_real_run(bundle: Path, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    command = [sys.executable, "-m", "lfmri", "enhance", str(scan), "-o", str(out), "--bundle", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {out}\n", "")
    done = subprocess.run([*command[:4], str(out.parent / "no.nii"), *command[5:]], capture_output=True, check=False)
    assert done.returncode == 3


def test_a_full_disk_leaves_nothing(bundle: Path, scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\nfrom lfmri.cli import main\nmain()"
    )
    out = tmp_path / "out" / "out.nii.gz"
    arguments = ["enhance", str(scan), "-o", str(out), "--bundle", str(bundle)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith(f"lfmri: {out}: disk full or file size limit reached")
    assert done.stderr.count("\n") == 1
    assert list(out.parent.iterdir()) == []


#: Says on stdout when the work, or the writing of its result, has begun; both then take longer than a test may.
STALL = """
import os, signal, sys, time
import lfmri_runtime.draws as draws
import lfmri_runtime.files as files
from lfmri.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)

def begun(original):
    def call(*arguments, **settings):
        os.write(1, b"begun\\n")
        return original(*arguments, **settings)
    return call

if sys.argv.pop(1) == "work":
    draws.noise_volume = begun(draws.noise_volume)
else:
    files._flush = begun(lambda path: time.sleep(300))
main()
"""


@pytest.mark.parametrize("moment", ["work", "write"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_that_is_cut_short_leaves_no_half_file(
    make_bundle: MakeBundle, scan: Path, tmp_path: Path, number: signal.Signals, code: int, moment: str
) -> None:
    out, before = tmp_path / "out" / "out.nii.gz", scan.read_bytes()
    long = ("--steps", "1000", "--samples", "1000") if moment == "work" else ()
    arguments = ["enhance", str(scan), "-o", str(out), "--bundle", str(make_bundle("noisy")), *long]
    command = [sys.executable, "-c", STALL, moment, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert not out.exists()
    assert scan.read_bytes() == before
    left = [path.name for path in out.parent.iterdir()]
    if number == signal.SIGKILL:  # nothing can tidy up; what is left is hidden
        assert all(name.startswith(".") for name in left)
    else:
        assert left == []
        said = {signal.SIGINT: "lfmri: interrupted; no output was left half written", signal.SIGTERM: ""}
        assert errors.strip() == said[number]
