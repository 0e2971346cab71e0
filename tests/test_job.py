"""One file in, its outputs out: what is checked before, what the sidecar says, and what it must not say."""

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BackendMissing, InputRefused, TryAgainLater, UsageError
from lfmri_runtime.files import sha256_file
from lfmri_runtime.job import Outputs, check_apart, check_outputs, enhance_file, write_outputs
from lfmri_runtime.sidecar import intensity_of, read_sidecar, sidecar_path
from lfmri_runtime.volume import read_scan, write_scan

from .bundles import MakeBundle
from .heads import head, places, scan_of

SECRET = "DOE^JANE"


@pytest.fixture(scope="module")
def enhancer(make_bundle: MakeBundle) -> Enhancer:
    return Enhancer(open_bundle(make_bundle("noisy")), threads=1)


@pytest.fixture
def scan(make_nifti: Callable[..., Path]) -> Path:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    return make_nifti(f"{SECRET}.nii.gz", data=data, affine=affine, dtype=np.float32, descrip=SECRET, db_name=SECRET)


def run(enhancer: Enhancer, scan: Path, outputs: Outputs, **settings: Any) -> dict[str, Any]:
    check_outputs([(scan, outputs)])
    return enhance_file(enhancer, scan, outputs, progress=lambda done, total: None, **settings)


# Before the work


def refused(jobs: list[tuple[Path, Outputs]], match: str, **kept: Any) -> None:
    folder = jobs[0][0].parent
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=match):
        check_outputs(jobs, **kept)
    assert sorted(folder.rglob("*")) == before


def test_outputs_that_would_replace_something_are_refused(scan: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out.nii.gz", tmp_path / "page.html"
    refused([(scan, Outputs(scan))], "would replace an input")
    refused([(scan, Outputs(tmp_path / "x" / ".." / scan.name))], "would replace an input")
    refused([(scan, Outputs(out, out))], "would replace another output")
    refused([(scan, Outputs(out, scan))], "would replace an input")
    refused([(scan, Outputs(out, None, scan))], "would replace an input")
    refused([(scan, Outputs(out, None, tmp_path / "out.json"))], "out.json would replace another output")
    refused([(scan, Outputs(out)), (tmp_path / "b.nii", Outputs(out))], "would replace another output")
    refused([(scan, Outputs(out)), (tmp_path / "b.nii", Outputs(tmp_path / "out.nii"))], "out.json would replace")
    refused([(scan, Outputs(out, None, page)), (tmp_path / "b.nii", Outputs(scan))], "would replace an input")
    refused([(scan, Outputs(out))], "would replace an input", kept=[out])
    converted = scan.with_name(scan.name.replace(".nii.gz", ".mgz"))
    refused([(scan, Outputs(converted))], "json would replace an input")
    check_outputs([(scan, Outputs(out, tmp_path / "std.nii.gz", page))], kept=[tmp_path / "mask.nii.gz"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [scan.name], "the check leaves nothing"


def test_a_link_to_the_input_is_the_input(scan: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.nii.gz"
    link.symlink_to(scan)
    refused([(scan, Outputs(link))], "would replace an input")
    refused([(link, Outputs(scan))], "would replace an input")


def test_a_name_that_is_no_image_is_refused(scan: Path, tmp_path: Path) -> None:
    refused([(scan, Outputs(tmp_path / "out.png"))], "unknown kind of image")
    refused([(scan, Outputs(tmp_path / "out.nii", tmp_path / "std"))], "unknown kind of image")


@pytest.mark.parametrize("name", ["out.nii.gz", "out.json", "page.html"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(scan: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(TryAgainLater, match=rf"{name}: not writable \(it is a folder\)"):
        check_outputs([(scan, Outputs(tmp_path / "out.nii.gz", None, tmp_path / "page.html"))])


def test_a_page_needs_pillow(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    check_outputs([(scan, Outputs(tmp_path / "out.nii.gz"))])
    with pytest.raises(BackendMissing, match=r"pip install 'lfmri\[evaluate\]'"):
        check_outputs([(scan, Outputs(tmp_path / "out.nii.gz", None, tmp_path / "page.html"))])


def test_files_that_are_apart_pass(tmp_path: Path) -> None:
    check_apart([tmp_path / "a", tmp_path / "b"], inputs=[tmp_path / "c", tmp_path / "c"])
    with pytest.raises(UsageError, match="b would replace an input"):
        check_apart([tmp_path / "a", tmp_path / "b"], inputs=[tmp_path / "b"])
    with pytest.raises(UsageError, match=r"b\.json would replace an input"):
        check_apart([tmp_path / "b.json"], inputs=[tmp_path / "b.nii.gz"])
    check_apart([tmp_path / "a"], inputs=[Path()])


# The outputs


def test_scan_and_uncertainty_are_what_the_core_gives(enhancer: Enhancer, scan: Path, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "new" / "out.nii.gz", tmp_path / "std.nii.gz")
    before = scan.read_bytes()
    run(enhancer, scan, outputs, samples=3, seed=4)
    source = read_scan(scan)
    expected = enhancer.enhance(source.data, source.affine, samples=3, seed=4)
    written, deviation = read_scan(outputs.scan), read_scan(tmp_path / "std.nii.gz")
    np.testing.assert_array_equal(written.data, expected.mean)
    np.testing.assert_array_equal(deviation.data, expected.std)
    np.testing.assert_allclose(written.affine, expected.affine, atol=1e-5)
    assert written.dtype == np.float32
    assert scan.read_bytes() == before
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {scan.name, "new/out.nii.gz", "new/out.json", "std.nii.gz"}


def test_an_integer_scan_keeps_its_type(enhancer: Enhancer, make_nifti: Callable[..., Path], tmp_path: Path) -> None:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    path = make_nifti("a.nii", data=10 * data, affine=affine)
    run(enhancer, path, Outputs(tmp_path / "out.nii"))
    written, source = read_scan(tmp_path / "out.nii"), read_scan(path)
    assert written.dtype == np.int16
    expected = enhancer.enhance(source.data, source.affine).mean
    np.testing.assert_allclose(written.data, expected, atol=1)
    assert nib.load(tmp_path / "out.nii").header.get_xyzt_units() == ("mm", "sec")


def test_a_mask_is_read_on_the_scans_grid(
    enhancer: Enhancer, scan: Path, make_nifti: Callable[..., Path], tmp_path: Path
) -> None:
    source = read_scan(scan)
    inside = head(places(source.data.shape, source.affine)) > 150
    mask = make_nifti("mask.nii.gz", data=inside, affine=source.affine, dtype=np.uint8)
    run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"), mask=mask)
    expected = enhancer.enhance(source.data, source.affine, mask=inside)
    np.testing.assert_array_equal(read_scan(tmp_path / "out.nii.gz").data, expected.mean)
    moved = source.affine.copy()
    moved[0, 3] += 1
    for other in ({"data": inside[1:], "affine": source.affine}, {"data": inside, "affine": moved}):
        with pytest.raises(InputRefused, match="resample it onto the scan"):
            run(
                enhancer,
                scan,
                Outputs(tmp_path / "not.nii.gz"),
                mask=make_nifti("other.nii.gz", dtype=np.uint8, **other),
            )
    assert not (tmp_path / "not.nii.gz").exists()


def test_a_mask_may_cover_the_whole_scan_but_not_nothing(
    enhancer: Enhancer, scan: Path, make_nifti: Callable[..., Path], tmp_path: Path
) -> None:
    source = read_scan(scan)
    inside = np.ones(source.data.shape, bool)
    whole = make_nifti("whole.nii.gz", data=inside, affine=source.affine, dtype=np.uint8)
    run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"), mask=whole)
    expected = enhancer.enhance(source.data, source.affine, mask=inside)
    np.testing.assert_array_equal(read_scan(tmp_path / "out.nii.gz").data, expected.mean)
    for value, match in ((0.0, "every voxel is zero"), (0.3, "and 0 voxels set")):
        nothing = make_nifti("nothing.nii.gz", data=value * inside, affine=source.affine, dtype=np.float32)
        with pytest.raises(InputRefused, match=match):
            run(enhancer, scan, Outputs(tmp_path / "not.nii.gz"), mask=nothing)


# The sidecar


def test_the_sidecar_says_how_it_was_made(enhancer: Enhancer, scan: Path, tmp_path: Path) -> None:
    document = run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"), steps=2, samples=3, seed=5, grid="input")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(document))
    assert document["bundle"] == {"name": "by-hand", "version": "0.0.1", "sha256": enhancer.bundle.sha256}
    assert document["input"] == {
        "sha256": sha256_file(scan),
        "shape": [20, 22, 7],
        "voxel_size_mm": [1.5, 1.2, 5.0],
    }
    assert {key: document[key] for key in ("steps", "samples", "seed", "grid", "thick_axis")} == {
        "steps": 2,
        "samples": 3,
        "seed": 5,
        "grid": "input",
        "thick_axis": "S",
    }
    assert document["backend"] == {
        "name": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "precision": "float32",
    }
    assert list(document["seconds"]) == ["read", "write", "prepare", "network", "loop", "check", "restore"]
    assert all(value >= 0 for value in document["seconds"].values())
    libraries = {name: version(name) for name in ("lfmri", "numpy", "onnxruntime", "nibabel")}
    assert document["versions"] == {"python": platform.python_version(), **libraries}
    assert document["trained_on"] == ["nobody"]
    assert document["intended_use"] == "Tests."
    assert document["uncertainty"] == {"scale": 1.0, "calibrated": False}
    (note,) = document["notes"]
    assert "the bundle has no calibration" in note


def test_the_sidecar_knows_the_scan_that_was_read(enhancer: Enhancer, scan: Path, tmp_path: Path) -> None:
    before = sha256_file(scan)
    document = enhance_file(
        enhancer, scan, Outputs(tmp_path / "out.nii.gz"), progress=lambda done, total: scan.write_bytes(b"the next")
    )
    assert document["input"]["sha256"] == before != sha256_file(scan)


def test_the_sidecars_scale_is_the_enhanced_scans(enhancer: Enhancer, scan: Path, tmp_path: Path) -> None:
    run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"))
    source = read_scan(scan)
    document = read_sidecar(tmp_path / "out.nii.gz")
    assert document is not None
    intensity = intensity_of(document, Path("out.json"))
    assert intensity.scale == enhancer.enhance(source.data, source.affine).scale
    assert intensity.low_field == enhancer.bundle.contract.processing.low_field
    assert intensity.high_field == enhancer.bundle.contract.processing.high_field


def test_nothing_that_may_name_the_patient_gets_out(
    enhancer: Enhancer, scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(enhancer, scan, Outputs(tmp_path / "out.nii.gz", None, tmp_path / "page.html"))
    assert SECRET.encode() in nib.load(scan).header.binaryblock
    for name in ("out.json", "page.html"):
        content = (tmp_path / name).read_text()
        assert len(content) > 500
        for word in (SECRET, "DOE", "JANE", str(tmp_path), tmp_path.name):
            assert word not in content
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii", "a.json"), ("a.b.NII.GZ", "a.b.json"), ("a.mgz", "a.json"), ("a.nii.nii.gz", "a.nii.json")],
)
def test_the_sidecar_lies_beside_the_scan(name: str, expected: str) -> None:
    assert sidecar_path(Path("folder") / name) == Path("folder") / expected


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, f'{{"a": "{"x" * (1 << 20)}"}}', "\udcff"],
    ids=["half", "list", "deep", "large", "no UTF-8"],
)
def test_a_sidecar_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputRefused, match=r"a\.json: .*expected the sidecar that `lfmri enhance` wrote") as caught:
        read_sidecar(tmp_path / "a.nii.gz")
    assert "\n" not in str(caught.value)
    assert read_sidecar(tmp_path / "b.nii.gz") is None


@pytest.mark.parametrize("intensity", [None, {}, {"scale": "1"}, 3])
def test_a_sidecar_without_its_scale_is_refused(intensity: object) -> None:
    with pytest.raises(
        InputRefused, match=r"out\.json: .*intensity.*; expected what `lfmri enhance` wrote: enhance again"
    ):
        intensity_of({"intensity": intensity}, Path("out.json"))


def test_the_sidecar_comes_last(
    enhancer: Enhancer, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise TryAgainLater("disk full")

    monkeypatch.setattr("lfmri_runtime.job.write_scan", full)
    with pytest.raises(TryAgainLater):
        run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"))
    assert [path.name for path in tmp_path.iterdir()] == [scan.name]


def test_an_earlier_sidecar_does_not_speak_for_what_is_half_written(
    enhancer: Enhancer, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Outputs(tmp_path / "out.nii.gz", tmp_path / "std.nii.gz")
    run(enhancer, scan, outputs, samples=2)
    written = []

    def full(path: Path, *arguments: Any) -> None:
        if written:
            raise TryAgainLater("disk full")
        written.append(path)
        write_scan(path, *arguments)

    monkeypatch.setattr("lfmri_runtime.job.write_scan", full)
    with pytest.raises(TryAgainLater):
        run(enhancer, scan, outputs, samples=2)
    assert not sidecar_path(outputs.scan).exists()


def test_maps_do_not_keep_the_scans_display_window(
    enhancer: Enhancer, make_nifti: Callable[..., Path], tmp_path: Path
) -> None:
    data, affine = scan_of(np.diag([1.5, 1.2, 5.0, 1.0]))
    path = make_nifti("windowed.nii.gz", data=data, affine=affine, dtype=np.float32, cal_min=10, cal_max=800)
    scan = read_scan(path)
    names = [tmp_path / f"{name}.nii.gz" for name in ("out", "std", "residual")]
    found = replace(enhancer.enhance(data, affine, samples=2), residual=data - data.mean())
    outputs = Outputs(names[0], names[1], residual=names[2])
    write_outputs(enhancer.bundle, scan, found, outputs, input_sha256="", read=0.0)
    windows = [tuple(float(nib.load(path).header[key]) for key in ("cal_min", "cal_max")) for path in names]
    assert windows == [(10, 800), (0, 0), (0, 0)]


def test_where_there_is_no_residual_an_earlier_one_goes_and_a_note_says_why(
    enhancer: Enhancer, scan: Path, tmp_path: Path
) -> None:
    outputs = Outputs(tmp_path / "out.nii.gz", residual=tmp_path / "residual.nii.gz")
    (tmp_path / "residual.nii.gz").write_bytes(b"of another scan")
    read = read_scan(scan)
    found = replace(enhancer.enhance(read.data, read.affine), residual=None)
    document = write_outputs(enhancer.bundle, read, found, outputs, input_sha256="0" * 64, read=0.0)
    assert not (tmp_path / "residual.nii.gz").exists()
    assert document["notes"][-1] == "no residual is written: too little head, or no noise, to compare the scan with"
    assert read_sidecar(outputs.scan) == document


def test_a_mask_that_drifts_away_from_the_scan_is_refused(enhancer: Enhancer, scan: Path, tmp_path: Path) -> None:
    image = nib.load(scan)
    for scale, fits in ((1 + 1e-4, True), (1.005, False)):
        path = tmp_path / "mask.nii.gz"
        affine = image.affine @ np.diag([scale, scale, 1, 1])
        nib.Nifti1Image((np.indices(image.shape)[0] > 3).astype(np.uint8), affine).to_filename(path)
        if fits:
            run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"), mask=path)
        else:
            with pytest.raises(InputRefused, match="on a grid of its own; expected the scan's grid"):
                run(enhancer, scan, Outputs(tmp_path / "out.nii.gz"), mask=path)
