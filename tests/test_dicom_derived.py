"""Derived DICOM series: valid, of the same geometry, the same again on a retry, and true about what they are."""

import gzip
import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.dicom.derived import derived_series_uid, write_derived, write_uncertainty
from lfmri_runtime.dicom.parsing import quiet
from lfmri_runtime.dicom.selection import reason_to_pass_by
from lfmri_runtime.dicom.series import Series, group_files, read_series
from lfmri_runtime.enhancer import Enhanced, Enhancer
from lfmri_runtime.errors import InputRefused, TryAgainLater, UsageError

from .bundles import MakeBundle
from .dicoms import (
    FRAME_OF_REFERENCE,
    INTERLEAVED,
    SERIES,
    SHAPE,
    STUDY,
    classic,
    enhanced,
    item,
    require_program,
)

BACKEND = {"name": "onnxruntime", "precision": "float32"}
UNKNOWN = {"largest": None, "threshold": 11.0, "place_mm": None, "rms": None, "noise": None}
REPORT = {
    "steps": 1, "samples": 1, "seed": 0, "grid": "input", "thick_axis": "none", "backend": BACKEND,
    "consistency": UNKNOWN,
}  # fmt: skip
KINDS = ("classic", "enhanced")
GRIDS = ("input", "isotropic")


@pytest.fixture(scope="module")
def enhancer(make_bundle: MakeBundle) -> Enhancer:
    return Enhancer(open_bundle(make_bundle("noisy")), threads=1)


class Case:
    """One series with what enhancing it gave and what was written."""

    def __init__(self, enhancer: Enhancer, folder: Path, kind: str, grid: str) -> None:
        self.enhancer, self.kind, self.grid = enhancer, kind, grid
        self.folders = [folder / name for name in ("original", "derived", "uncertainty")]
        original, derived, uncertainty = self.folders
        self.originals = classic(original) if kind == "classic" else [_made(original)]
        self.before = [path.read_bytes() for path in self.originals]
        self.series: Series = read_series(self.originals)
        self.enhanced: Enhanced = enhancer.enhance(self.series.data, self.series.affine, grid=grid, samples=2)
        self.derived = write_derived(derived, self.series, self.enhanced, bundle=enhancer.bundle)
        self.uncertainty = write_uncertainty(uncertainty, self.series, self.enhanced, bundle=enhancer.bundle)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return enhanced(folder / "frames.dcm")


@pytest.fixture(scope="module", params=[(kind, grid) for kind in KINDS for grid in GRIDS], ids="-".join)
def case(request: pytest.FixtureRequest, enhancer: Enhancer, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(enhancer, tmp_path_factory.mktemp("case"), *request.param)


@pytest.fixture(scope="module")
def plain(enhancer: Enhancer, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(enhancer, tmp_path_factory.mktemp("case"), "classic", "input")


# What other programs say


def errors_in(path: Path) -> set[str]:
    said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
    assert "MRImage" in said
    return {line for line in said.splitlines() if line.startswith("Error")}


def test_validators_accept_every_instance(case: Case) -> None:
    require_program("dciodvfy")
    for path in (*case.derived, *case.uncertainty):
        assert errors_in(path) == set()


def test_original_and_derived_agree_as_one_study(case: Case) -> None:
    require_program("dcentvfy")
    files = [*case.originals, *case.derived, *case.uncertainty]
    done = subprocess.run(["dcentvfy", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dcm2niix_finds_the_originals_geometry(case: Case, tmp_path: Path) -> None:
    require_program("dcm2niix")
    images: list[Any] = []
    for folder in case.folders[:2]:
        name = folder.name
        subprocess.run(["dcm2niix", "-o", tmp_path, "-f", name, "-b", "n", folder], check=True, capture_output=True)
        images.append(nib.load(tmp_path / f"{name}.nii"))
    original, derived = images
    if case.grid == "input":
        assert original.shape == derived.shape
        np.testing.assert_array_equal(original.affine, derived.affine)
    canonical = nib.as_closest_canonical(derived)
    expected = nib.as_closest_canonical(nib.Nifti1Image(case.enhanced.mean, case.enhanced.affine))
    np.testing.assert_allclose(canonical.affine, expected.affine, atol=1e-3)
    np.testing.assert_allclose(canonical.get_fdata(), expected.get_fdata(), atol=0.06)


def test_a_scanners_matrix_keeps_every_voxel_in_its_place(enhancer: Enhancer, tmp_path: Path) -> None:
    require_program("dcm2niix")
    series = read_series(classic(tmp_path / "original", shape=(112, 136, 12)))
    result = Enhanced(series.data, None, series.affine, 1.0, REPORT, ())
    write_derived(tmp_path / "derived", series, result, bundle=enhancer.bundle)
    images: list[Any] = []
    for name in ("original", "derived"):
        command = ["dcm2niix", "-o", tmp_path, "-f", name, "-b", "n", tmp_path / name]
        subprocess.run(command, check=True, capture_output=True)
        images.append(nib.load(tmp_path / f"{name}.nii"))
    assert images[0].shape == images[1].shape == (112, 136, 12)
    np.testing.assert_array_equal(images[0].affine, images[1].affine)
    np.testing.assert_allclose(images[0].get_fdata(), images[1].get_fdata(), atol=0.3)


def test_a_real_header_of_frames_is_understood(enhancer: Enhancer, tmp_path: Path) -> None:
    """A vendor's Enhanced MR header, whose pixels were zeroed; cut to 24 sagittal frames."""
    require_program("dciodvfy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel's reader calls itself experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    packed = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    with gzip.open(packed) as stream, quiet():
        ds = pydicom.dcmread(stream)
        ds.NumberOfFrames, ds.PerFrameFunctionalGroupsSequence = 24, ds.PerFrameFunctionalGroupsSequence[:24]
        ds.PixelData = np.random.default_rng(2).integers(0, 4000, (24, 256, 256)).astype(np.uint16).tobytes()
    path = tmp_path / "original.dcm"
    ds.save_as(path)
    series = read_series([path])
    wrapper = wrapper_from_data(ds)
    # It is in LPS, and counts rows before columns, and slices against their normal.
    its_voxel = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 23], [0, 0, 0, 1]])
    np.testing.assert_allclose(series.affine, np.diag([-1, -1, 1, 1]) @ wrapper.affine @ its_voxel, atol=1e-3)
    result = Enhanced(series.data, None, series.affine, 1.0, REPORT, ())
    (derived,) = write_derived(tmp_path, series, result, bundle=enhancer.bundle)
    assert errors_in(derived) <= errors_in(path)


# What is written


def test_what_is_read_again_is_what_was_enhanced(case: Case) -> None:
    for paths, expected in ((case.derived, case.enhanced.mean), (case.uncertainty, case.enhanced.std)):
        again = read_series(paths)
        np.testing.assert_allclose(again.affine, case.enhanced.affine, atol=1e-5)
        assert expected is not None
        step = 0.1 if case.kind == "enhanced" else 0.5
        np.testing.assert_allclose(again.data, expected, atol=step / 2 + 1e-3)


def test_originals_are_left_alone_and_ours_are_passed_by(case: Case) -> None:
    assert [path.read_bytes() for path in case.originals] == case.before
    files = [*case.originals, *case.derived, *case.uncertainty]
    groups = group_files(files)
    assert len(groups) == 3
    for uid, paths in groups.items():
        reason = reason_to_pass_by(paths)
        assert reason is None if uid == SERIES else reason is not None and "enhanced already" in reason


def test_a_retry_makes_the_same_objects(case: Case, tmp_path: Path) -> None:
    bundle = case.enhancer.bundle
    series = read_series(case.originals[::-1])
    again = case.enhancer.enhance(series.data, series.affine, grid=case.grid, samples=2)
    for write, before in ((write_derived, case.derived), (write_uncertainty, case.uncertainty)):
        after = write(tmp_path, series, again, bundle=bundle)
        assert [path.name for path in after] == [path.name for path in before]
        assert [path.read_bytes() for path in after] == [path.read_bytes() for path in before]


def references(ds: Dataset) -> list[Dataset]:
    """SourceImageSequence of a slice, or of every frame."""
    if "SourceImageSequence" in ds:
        return list(ds.SourceImageSequence)
    groups = ds.PerFrameFunctionalGroupsSequence
    return [source for group in groups for source in group.DerivationImageSequence[0].SourceImageSequence]


def test_every_instance_says_what_it_is(case: Case) -> None:
    bundle, uids = case.enhancer.bundle, set()
    sources = {str(pydicom.dcmread(path).SOPInstanceUID) for path in case.originals}
    referenced = set()
    for path in case.derived:
        ds = pydicom.dcmread(path)
        uids.add(ds.SOPInstanceUID)
        assert path.name == f"{ds.SOPInstanceUID}.dcm"
        assert (ds.StudyInstanceUID, ds.FrameOfReferenceUID) == (STUDY, FRAME_OF_REFERENCE)
        assert ds.SeriesInstanceUID == derived_series_uid(case.series, case.enhanced, bundle=bundle)
        assert ds.ImageType[:2] == ["DERIVED", "SECONDARY" if case.kind == "classic" else "PRIMARY"]
        assert (ds.BurnedInAnnotation, ds.LossyImageCompression) == ("NO", "00")
        assert (ds.SeriesNumber, ds.SeriesTime) == (1003, "102000")
        assert ds.SeriesDescription == "T1 SECRET enhanced by lfmri - not for diagnosis"
        maker = ds.ContributingEquipmentSequence[-1]
        assert maker.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (maker.Manufacturer, maker.ManufacturerModelName) == ("lfmri", "by-hand")
        assert maker.SoftwareVersions[1:] == ["model 0.0.1", bundle.sha256]
        for source in references(ds):
            referenced.add(source.ReferencedSOPInstanceUID)
            assert source.SpatialLocationsPreserved == ("YES" if case.grid == "input" else "NO")
            assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        derivation = ds if case.kind == "classic" else ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        assert bundle.sha256 in derivation.DerivationDescription
        assert derivation.DerivationCodeSequence[0].CodingSchemeDesignator == "99LFMRI"
        assert not any(element.tag.is_private for element in ds.iterall())
        assert "SmallestImagePixelValue" not in ds
    assert len(uids) == len(case.derived)
    assert referenced == sources


@pytest.mark.parametrize("kind", KINDS)
def test_the_warning_of_the_check_travels_with_every_instance(enhancer: Enhancer, tmp_path: Path, kind: str) -> None:
    case = Case(enhancer, tmp_path, kind, "input")
    assert all("ImageComments" not in pydicom.dcmread(path) for path in case.derived)
    case.series.datasets[0].ImageComments = "tall"
    entry = {"largest": 20.0, "threshold": 11.0, "place_mm": [1.0, -2.0, 30.0]}
    warned = replace(case.enhanced, report={**case.enhanced.report, "consistency": entry})
    for number, path in enumerate(write_derived(tmp_path / "w", case.series, warned, bundle=enhancer.bundle)):
        comments = pydicom.dcmread(path).ImageComments
        assert comments.startswith("tall; the enhanced" if number == 0 else "the enhanced")
        assert "does not explain the input near (1, -2, 30) mm RAS: the residual there is 20.0 times" in comments
        assert comments.endswith("trust the input there, not the enhanced scan")


def test_a_slice_names_its_own_source_and_keeps_its_place(plain: Case) -> None:
    originals = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, plain.originals)}
    for path in plain.derived:
        ds = pydicom.dcmread(path)
        (source,) = ds.SourceImageSequence
        original = originals[source.ReferencedSOPInstanceUID]
        for name in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "SliceThickness",
            "SpacingBetweenSlices",
            "InstanceNumber",
            "AcquisitionTime",
        ):
            assert ds[name].value == original[name].value


def test_a_frame_names_its_own_source_and_keeps_its_place(enhancer: Enhancer, tmp_path: Path) -> None:
    case = Case(enhancer, tmp_path, "enhanced", "input")
    (original,), (derived,) = (map(pydicom.dcmread, paths) for paths in (case.originals, case.derived))
    pairs = zip(original.PerFrameFunctionalGroupsSequence, derived.PerFrameFunctionalGroupsSequence, strict=True)
    for number, (before, after) in enumerate(pairs, start=1):
        assert after.PlanePositionSequence == before.PlanePositionSequence
        assert after.FrameContentSequence == before.FrameContentSequence
        assert after.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == number


def test_slices_between_two_sources_name_both(enhancer: Enhancer, tmp_path: Path) -> None:
    case = Case(enhancer, tmp_path, "classic", "isotropic")
    z = [float(case.series.affine[:3, 2] @ case.series.affine[:3, 2]) ** 0.5 * k for k in range(SHAPE[2])]
    by_uid = {f"{SERIES}.{number}": z[k] for number, k in enumerate(INTERLEAVED, start=1)}
    for k, path in enumerate(case.derived):
        named = [by_uid[source.ReferencedSOPInstanceUID] for source in pydicom.dcmread(path).SourceImageSequence]
        assert len(named) == (1 if k % 5 == 0 else 2)
        assert min(named) <= k + 1e-6
        assert max(named) >= k - 1e-6
        assert max(named) - min(named) < 5 + 1e-6
        assert abs(named[0] - k) <= abs(named[-1] - k)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 2},
        {"samples": 3},
        {"seed": 1},
        {"grid": "isotropic"},
        {"thick_axis": "R"},
        {"backend": {**BACKEND, "precision": "bfloat16"}},
        {},
        {"label": "other"},
    ],
    ids=str,
)
def test_other_settings_are_another_series(plain: Case, change: dict[str, Any]) -> None:
    bundle = plain.enhancer.bundle
    first = derived_series_uid(plain.series, plain.enhanced, bundle=bundle)
    label = {"label": change["label"]} if "label" in change else {}
    report = {**plain.enhanced.report, **change} if not label else plain.enhanced.report
    other = bundle if change else replace(bundle, sha256="0" * 64)
    assert derived_series_uid(plain.series, replace(plain.enhanced, report=report), bundle=other, **label) != first


def test_other_slices_are_another_series(plain: Case) -> None:
    fewer = replace(plain.series, datasets=plain.series.datasets[:-1])
    first = derived_series_uid(plain.series, plain.enhanced, bundle=plain.enhancer.bundle)
    assert derived_series_uid(fewer, plain.enhanced, bundle=plain.enhancer.bundle) != first
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{30,38}", first)


# Intensities


@pytest.mark.parametrize(("factor", "kept"), [(8, True), (1e-3, False)])
def test_the_steps_of_the_source_are_kept_where_they_are_fine_enough(
    plain: Case, tmp_path: Path, factor: float, kept: bool
) -> None:
    mean = plain.enhanced.mean * np.float32(factor)
    paths = write_derived(tmp_path, plain.series, replace(plain.enhanced, mean=mean), bundle=plain.enhancer.bundle)
    ds = pydicom.dcmread(paths[0])
    assert (float(ds.RescaleSlope) == 0.5) is kept
    assert ds.PixelRepresentation == 1
    again = read_series(paths).data
    np.testing.assert_allclose(again, mean, atol=float(ds.RescaleSlope) * 0.51)
    assert ds.WindowWidth >= 1
    if kept:
        assert 0.7 * mean.max() < float(ds.WindowCenter) + float(ds.WindowWidth) / 2 <= mean.max()


def test_a_series_without_rescaling_gets_none(enhancer: Enhancer, tmp_path: Path) -> None:
    def change(ds: Dataset, k: int) -> None:
        ds.PixelData = (np.frombuffer(ds.PixelData, np.int16).clip(0) * 5).astype(np.uint16).tobytes()
        ds.PixelRepresentation = 0
        del ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType

    series = read_series(classic(tmp_path / "in", change=change))
    result = enhancer.enhance(series.data, series.affine, grid="input")
    result = replace(result, mean=result.mean.clip(0))
    ds = pydicom.dcmread(write_derived(tmp_path / "out", series, result, bundle=enhancer.bundle)[0])
    assert "RescaleSlope" not in ds
    assert ds.PixelRepresentation == 0


# Sources as consoles write them


def test_bad_elements_are_left_out_and_bad_classes_mended(
    plain: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(ds: Dataset, k: int) -> None:
        ds.SOPClassUID = STUDY
        ds.add_new(0x00200030, "DS", list(ds.ImagePositionPatient))
        ds.add_new(0x00200035, "DS", list(ds.ImageOrientationPatient))
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
        ds.SourceImageSequence = [item(ReferencedSOPInstanceUID="1.2")]
        ds.add_new(0x60000010, "US", 3)
        ds.AcquisitionMatrix = [0, 17, 17, 0]

    paths = classic(tmp_path / "in", change=change)
    for path in paths:
        content = path.read_bytes()
        whole, odd = b"US\x08\0\0\0\x11\0\x11\0\0\0", b"US\x07\0\0\0\x11\0\x11\0\0"
        assert whole in content
        path.write_bytes(content.replace(whole, odd))
    series = read_series(paths)
    derived = write_derived(tmp_path / "out", series, plain.enhanced, bundle=plain.enhancer.bundle)
    np.testing.assert_allclose(read_series(derived).affine, plain.series.affine, atol=1e-5)
    ds = pydicom.dcmread(derived[0])
    assert ds.SOPClassUID == ds.SourceImageSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    for gone in ("AcquisitionMatrix", 0x00200030, 0x00200035, 0x60000010):
        assert gone not in ds
    assert ds.PatientName == "DOE^JANE"
    assert capfd.readouterr() == ("", "")


def test_what_the_source_says_of_itself_is_carried(plain: Case, tmp_path: Path) -> None:
    def change(ds: Dataset, k: int) -> None:
        ds.BurnedInAnnotation, ds.LossyImageCompression, ds.LossyImageCompressionRatio = "YES", "01", "9"
        ds.ContributingEquipmentSequence = [item(Manufacturer="Others")]
        ds.SeriesTime = f"1020{k:02d}"
        ds.SeriesDescription = "x" * 64

    series = read_series(classic(tmp_path / "in", change=change))
    paths = write_derived(tmp_path / "out", series, plain.enhanced, bundle=plain.enhancer.bundle, label="site's own")
    found = [pydicom.dcmread(path) for path in paths]
    assert {ds.SeriesTime for ds in found} == {"102000"}
    assert found[3].SeriesDescription == f"{'x' * 53} site's own"
    assert (found[3].BurnedInAnnotation, found[3].LossyImageCompression) == ("YES", "01")
    assert found[3].LossyImageCompressionRatio == 9
    assert [maker.Manufacturer for maker in found[3].ContributingEquipmentSequence] == ["Others", "lfmri"]


# What is refused


@pytest.mark.parametrize("label", ["", " ", "a\\b", "verbesserte Schärfe", "a\nb", "x" * 41])
def test_a_label_that_does_not_fit_is_refused(plain: Case, tmp_path: Path, label: str) -> None:
    with pytest.raises(UsageError, match="printable ASCII"):
        write_derived(tmp_path, plain.series, plain.enhanced, bundle=plain.enhancer.bundle, label=label)
    assert list(tmp_path.iterdir()) == []


def test_one_sample_has_no_uncertainty(plain: Case, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        write_uncertainty(tmp_path, plain.series, replace(plain.enhanced, std=None), bundle=plain.enhancer.bundle)


@pytest.mark.parametrize(("error", "expected"), [(OSError(28, "full"), TryAgainLater), (KeyError("DOE"), InputRefused)])
def test_a_write_that_fails_leaves_no_half_file(
    plain: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    def fail(*arguments: object) -> Callable[..., object]:
        raise error

    where = (Path, "write_bytes") if isinstance(error, OSError) else (Dataset, "save_as")
    monkeypatch.setattr(*where, fail)
    with pytest.raises(expected) as caught:
        write_derived(tmp_path, plain.series, plain.enhanced, bundle=plain.enhancer.bundle)
    assert "DOE" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "expected"), [(OSError(28, "full"), TryAgainLater), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_write_that_is_cut_short_leaves_no_part_of_a_series(
    plain: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException]
) -> None:
    folder = tmp_path / "derived"

    def write(*, files: int) -> list[Path]:
        """Write the series; the disk takes so many files."""
        left = iter(range(files))
        with monkeypatch.context() as patch:

            def limited(path: Path, content: bytes) -> None:
                if next(left, None) is None:
                    raise error
                with path.open("wb") as stream:
                    stream.write(content)

            patch.setattr(Path, "write_bytes", limited)
            return write_derived(folder, plain.series, plain.enhanced, bundle=plain.enhancer.bundle)

    with pytest.raises(expected):
        write(files=3)
    assert list(tmp_path.iterdir()) == []
    first, second, *others = write(files=100)
    second.unlink()
    with pytest.raises(expected):
        write(files=3)
    assert set(folder.iterdir()) == {first, *others}, "what an earlier run wrote is the same, and stays"
