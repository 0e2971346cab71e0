"""Reading DICOM series: geometry and values as other readers see them, bad headers, and what is passed by."""

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from lfmri_runtime.dicom import parsing
from lfmri_runtime.dicom.selection import reason_to_pass_by
from lfmri_runtime.dicom.series import Series, group_files, read_series
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.orientation import to_ras

from .dicoms import SECRETS, SERIES, SHAPE, STUDY, Change, classic, enhanced, item, require_program, save, volume

HALF_STEP = {"classic": 0.25, "enhanced": 0.05}
MAKERS: dict[str, Callable[[Path], list[Path]]] = {
    "classic": classic,
    "enhanced": lambda folder: [enhanced(folder / "frames.dcm")],
}


@pytest.fixture(params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def paths(kind: str, tmp_path: Path) -> list[Path]:
    return MAKERS[kind](tmp_path)


def assert_is_the_head(series: Series, half_step: float) -> None:
    data, affine = volume()
    assert series.data.dtype == np.float32
    np.testing.assert_allclose(series.data, data, atol=half_step + 1e-3)
    np.testing.assert_allclose(series.affine, affine, atol=1e-4)


# Geometry and values


def test_a_series_is_the_volume_that_was_written(kind: str, paths: list[Path]) -> None:
    series = read_series(paths)
    assert_is_the_head(series, HALF_STEP[kind])
    assert (series.uid, series.notes) == (SERIES, ())
    assert len(series.datasets) == (SHAPE[2] if kind == "classic" else 1)
    assert reason_to_pass_by(paths) is None
    positions = [dataset.get("ImagePositionPatient") for dataset in series.datasets]
    if kind == "classic":
        np.testing.assert_allclose(positions[0][2], series.affine[2, 3], atol=1e-4)


def test_the_order_of_the_files_changes_nothing(tmp_path: Path) -> None:
    paths = classic(tmp_path)
    first, second = read_series(paths), read_series(paths[::-1])
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_array_equal(first.affine, second.affine)
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert first.sha256 == second.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_geometry_and_values_are_those_of_dcm2niix(paths: list[Path], tmp_path: Path) -> None:
    require_program("dcm2niix")
    series = read_series(paths)
    out = tmp_path / "nifti"
    out.mkdir()
    subprocess.run(["dcm2niix", "-o", out, "-f", "x", "-b", "n", tmp_path], check=True, capture_output=True)
    image: Any = nib.as_closest_canonical(nib.load(out / "x.nii"))
    data, affine = to_ras(series.data, series.affine)
    np.testing.assert_allclose(affine, image.affine, atol=1e-3)
    np.testing.assert_allclose(data, image.get_fdata(), atol=1e-3)


def _run_lengths(ds: Dataset) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.compress(RLELossless, generate_instance_uid=False)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_what_pydicom_decodes_itself_is_read(kind: str, syntax: str, tmp_path: Path) -> None:
    def encode(ds: Dataset, k: int = 0) -> None:
        if syntax == RLELossless:
            _run_lengths(ds)
            return
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            ds["PixelData"].value = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()

    made = classic(tmp_path, change=encode) if kind == "classic" else [enhanced(tmp_path / "a.dcm", change=encode)]
    assert_is_the_head(read_series(made), HALF_STEP[kind])


def test_bits_beyond_those_stored_are_no_values(tmp_path: Path) -> None:
    def change(ds: Dataset, k: int) -> None:
        ds.BitsStored, ds.HighBit = 12, 11
        stored = np.frombuffer(ds.PixelData, np.uint16)
        ds.PixelData = ((stored & 0x0FFF) | 0x5000).astype(np.uint16).tobytes()

    assert_is_the_head(read_series(classic(tmp_path, change=change)), HALF_STEP["classic"])


# Headers as consoles write them


def _retire(ds: Dataset, k: int) -> None:
    ds.add_new(0x00200030, "DS", list(ds.ImagePositionPatient))
    ds.add_new(0x00200035, "DS", list(ds.ImageOrientationPatient))
    del ds.ImagePositionPatient, ds.ImageOrientationPatient


def _fixed_spacing(ds: Dataset, k: int) -> None:
    ds.SpacingBetweenSlices = "1"


def _bad_uids(ds: Dataset, k: int) -> None:
    ds.SOPClassUID = STUDY
    ds.SOPInstanceUID = f"1.2.{k + 1}.".ljust(65, "3")


def _nonsense(ds: Dataset, k: int) -> None:
    ds.add_new(0x00101010, "AS", "very old")
    ds.SpecificCharacterSet = "SECRET"
    ds.add_new(0x00081030, "LO", "x" * 300)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (_retire, "retired elements"),
        (_fixed_spacing, "1 mm apart, their positions 5 mm"),
        (_bad_uids, ""),
        (_nonsense, ""),
    ],
)
def test_bad_headers_of_consoles_are_coped_with(
    change: Change, note: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = classic(tmp_path, change=change)
    assert reason_to_pass_by(paths) is None
    series = read_series(paths)
    assert_is_the_head(series, HALF_STEP["classic"])
    assert len(series.notes) == bool(note)
    assert note in "".join(series.notes)
    assert capfd.readouterr() == ("", "")


def test_spacings_that_are_all_a_millimetre_are_noted(tmp_path: Path) -> None:
    paths = classic(tmp_path / "a", change=_set(PixelSpacing=[1, 1], SpacingBetweenSlices=1))
    assert "exactly 1 mm there too" in read_series(paths).notes[1]
    assert read_series(classic(tmp_path / "b", change=_set(PixelSpacing=[1, 1]))).notes == ()


def test_frames_under_the_single_frame_class_are_read_by_what_they_are(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "a.dcm", change=lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"))
    assert_is_the_head(read_series([path]), HALF_STEP["enhanced"])


# What is refused


def _set(**values: Any) -> Change:
    return lambda ds, k: [setattr(ds, name, value) for name, value in values.items()]


def _at(wanted: int, **values: Any) -> Change:
    return lambda ds, k: [setattr(ds, name, value) for name, value in values.items() if k == wanted]


def _without(name: str) -> Change:
    return lambda ds, k: delattr(ds, name)


def _echoes(ds: Dataset, k: int) -> None:
    twin = k // 2
    ds.ImagePositionPatient = [0, 0, 5 * twin]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.EchoTime = 10 + 20 * (k % 2)


def _copies(ds: Dataset, k: int) -> None:
    _echoes(ds, k)
    ds.EchoTime = 10


def _compressed(ds: Dataset, k: int) -> None:
    _run_lengths(ds)
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1


def _short(ds: Dataset, k: int) -> None:
    ds.PixelData = ds.PixelData[:-2]


def _much(ds: Dataset, k: int) -> None:
    _run_lengths(ds)
    ds.Rows = ds.Columns = 4096


def _endless(ds: Dataset, k: int) -> None:
    _run_lengths(ds)
    ds.PixelData = encapsulate([b"\x01".ljust(64, b"\0") + b"\x81\0" * 10_000])


def _colours(ds: Dataset, k: int) -> None:
    ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0


REFUSED: dict[str, tuple[Change, str]] = {
    "several echoes": (_echoes, r"several slices at one place \(they differ in echo time\)"),
    "copies": (_copies, r"several slices at one place \(nothing tells them apart\)"),
    "orientations": (_at(3, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "several orientations"),
    "a slice out of place": (_at(3, ImagePositionPatient=[0, 0, 500]), "expected even distances"),
    "sizes": (_at(3, Rows=20, Columns=26), "several matrix sizes"),
    "spacings": (_at(3, PixelSpacing=[1, 2]), "several pixel spacings"),
    "no place": (_without("ImagePositionPatient"), "no position of 3 numbers"),
    "no orientation": (_without("ImageOrientationPatient"), "no orientation of 6 numbers"),
    "no spacing": (_without("PixelSpacing"), "no pixel spacing of 2 numbers"),
    "no pixels": (_without("PixelData"), "no pixels"),
    "not finite": (_set(ImagePositionPatient=["NAN", "0", "0"]), "no position of 3 numbers"),
    "not orthogonal": (_set(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "not at right angles"),
    "far away": (lambda ds, k: setattr(ds, "ImagePositionPatient", [9e8, 0, 5 * k]), "not at right|mm away|even"),
    "compressed": (_compressed, "compressed; expected uncompressed or RLE: decompress with gdcmconv --raw"),
    "cut pixels": (_short, "cut off: 1038 bytes for 1040 of pixels"),
    "frames that are not there": (_set(NumberOfFrames=3), "3 frames with the places of 0"),
    "frames without end": (_set(NumberOfFrames=2**31 - 1), "the header promises 2147483647 x 26 x 20 voxels"),
    "large": (_set(Rows=65535, Columns=65535), "the header promises 1 x 65535 x 65535 voxels"),
    "empty": (_set(Rows=0), "the header promises 1 x 0 x 20 voxels"),
    "bits": (_set(BitsAllocated=64), "no pixels, or of 64 bits"),
    "inverted": (_set(PhotometricInterpretation="MONOCHROME1"), "colours or inverted"),
    "run lengths that promise much": (_much, "cut off: [0-9]+ bytes for 33554432 of pixels"),
    "run lengths without end": (_endless, "bytes of run lengths for 1040 of pixels"),
    "colours": (_colours, "colours or inverted"),
    "look-up table": (_set(ModalityLUTSequence=[item(LUTExplanation="SECRET")]), "modality look-up table"),
    "no scaling": (_set(RescaleSlope="0"), "every voxel has the same value"),
    "scaling that overflows": (_set(RescaleSlope="1e300"), "NaN or infinite"),
    "text for a number": (_set(Rows=[1, 2, 3]), "damaged|make no sense"),
    "series": (_at(3, SeriesInstanceUID="1.2.SECRET"), "2 SeriesInstanceUIDs"),
    "no series": (_without("SeriesInstanceUID"), "1 SeriesInstanceUIDs or an empty one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_volume_is_refused_by_name(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, match = REFUSED[name]
    paths = classic(tmp_path / "series", change=change)
    with pytest.raises(InputRefused, match=match) as caught:
        read_series(paths)
    message = str(caught.value).replace(str(tmp_path), "")
    assert message.startswith("/series")
    assert "\n" not in message
    assert not any(word in message for word in SECRETS)
    assert capfd.readouterr() == ("", "")


def test_a_missing_slice_is_refused_and_passed_by(tmp_path: Path) -> None:
    paths = classic(tmp_path)
    del paths[2]
    with pytest.raises(InputRefused, match="slices 5 to 10 mm apart; expected even distances"):
        read_series(paths)
    assert "5 to 10 mm apart" in (reason_to_pass_by(paths) or "")


def test_files_that_are_no_series_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = classic(tmp_path)
    frames = [enhanced(tmp_path / f"frames{n}.dcm") for n in (1, 2)]
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM")
    for files, match in (
        ([], "0 files; expected 1 to 2048"),
        ([text] * 2049, "2049 files"),
        ([*paths, text], r"text\.dcm: not DICOM"),
        (paths[:1], "a single slice"),
        (frames, "2 files, some of many frames"),
        ([tmp_path], "not a regular file"),
        ([tmp_path / "nowhere"], "not a regular file"),
    ):
        with pytest.raises(InputRefused, match=match):
            read_series(files)
    monkeypatch.setattr(parsing, "MAX_FILE_BYTES", 1000)
    with pytest.raises(InputRefused, match="over 1000 bytes"):
        read_series(paths)


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.EncapsulatedDocument = "1.2", "1.3", bytes(10**7)
    path = save(ds, tmp_path / "a.dcm", syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(InputRefused, match="deflated"):
        read_series([path])


# Which series are enhanced


PASSED_BY: dict[str, tuple[Change, str]] = {
    "CT": (_set(Modality="CT"), "not MR"),
    "a phase image": (_set(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "not a magnitude image"),
    "a phase component": (_set(ComplexImageComponent="PHASE"), "not a magnitude image"),
    "GE's phase": (lambda ds, k: ds.add_new(0x0043102F, "SS", 1), "not a magnitude image"),
    "a mosaic": (_set(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), "a mosaic"),
    "a map": (_set(ImageType=["DERIVED", "PRIMARY", "ADC"]), "calculated"),
    "a localiser by type": (_set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localiser"),
    "a localiser by name": (_set(SeriesDescription="3-Plane SECRET"), "a localiser"),
    **{
        f"a localiser called {name}": (_set(SeriesDescription=name), "a localiser")
        for name in ("AAHead_Scout", "AAHScout", "Localizer_3plane", "T1_loc", "LOC_SAG", "Survey_32ch", "3_plane")
    },
    **{
        f"another contrast, {name}": (_set(SeriesDescription=name, ProtocolName=name), f"named {word}, another")
        for name, word in (("t2_flair_tra", "T2"), ("AX FLAIR", "FLAIR"), ("ep2d diff", "DIFF"), ("TOF 3D", "TOF"))
    },
    "another contrast by protocol": (
        _set(SeriesDescription="SAG", ProtocolName="SAG T2w"),
        "named T2W, another contrast than T1w",
    ),
    "another part of the body": (_set(BodyPartExamined="KNEE"), "not a head (BodyPartExamined is KNEE)"),
    "a localiser by its planes": (_at(3, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "localiser"),
    "several echoes": (_echoes, "they differ in echo time"),
    "a small matrix": (_set(Rows=12), "too small: 12 slices of 12 pixels"),
    "no place": (_without("ImagePositionPatient"), "no position"),
    "ours": (_set(ContributingEquipmentSequence=[item(Manufacturer="lfmri")]), "enhanced already"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED_BY)
def test_what_is_not_enhanced_is_passed_by_with_a_reason(name: str, tmp_path: Path) -> None:
    change, match = PASSED_BY[name]
    reason = reason_to_pass_by(classic(tmp_path, change=change))
    assert reason is not None
    assert match in reason
    assert not any(word in reason for word in SECRETS)


def test_few_slices_and_frames_of_phase_are_passed_by(tmp_path: Path) -> None:
    assert "too small: 3 slices" in (reason_to_pass_by(classic(tmp_path, shape=(20, 26, 3))) or "")

    def phase(ds: Dataset) -> None:
        shared = ds.SharedFunctionalGroupsSequence[0]
        shared.MRImageFrameTypeSequence[0].ComplexImageComponent = "PHASE"

    frames = [enhanced(tmp_path / f"frames{n}.dcm", change=phase) for n in (1, 2)]
    assert "not a magnitude image" in (reason_to_pass_by(frames[:1]) or "")
    plain = [enhanced(tmp_path / f"plain{n}.dcm") for n in (1, 2)]
    assert "2 files, some of many frames" in (reason_to_pass_by(plain) or "")


def test_files_are_grouped_by_series_and_the_rest_left_out(tmp_path: Path) -> None:
    first = classic(tmp_path / "a")
    second = classic(tmp_path / "b", change=_set(SeriesInstanceUID="1.2.3"))
    other = save(item(SOPClassUID="1.2", SOPInstanceUID="1.3"), tmp_path / "other.dcm", syntax=ExplicitVRLittleEndian)
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM")
    groups = group_files([text, first[0], *second, *first[1:], other, tmp_path])
    assert groups == {SERIES: first, "1.2.3": second}
