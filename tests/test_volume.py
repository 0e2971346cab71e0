import gzip
import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

import lfmri_runtime
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.volume import MAX_VOXELS, Scan, read_mask, read_scan, write_scan

RUNTIME = Path(lfmri_runtime.__file__).parents[1]
MakeNifti = Callable[..., Path]
ORIENTATIONS = ("RAS", "LAS", "LPS", "PIR", "oblique")
CODES = ((1, 1), (4, 0), (0, 1), (1, 2))
DTYPES = (np.uint8, np.int16, np.uint16, np.float32, np.float64)
SECRET = "DOE^JANE 1970"
SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")

# Offsets of fields in a NIfTI-1 header, bytes
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, XYZT = 40, 70, 76, 108, 112, 123
QFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 256, 280, 344
# Offsets of fields in an MGH header, bytes
MGH_DIMS, MGH_TYPE, MGH_GOOD_RAS, MGH_DELTA = 4, 20, 28, 30


def affine_for(orientation: str, oblique: np.ndarray) -> np.ndarray:
    if orientation == "oblique":
        return oblique
    size = np.diag([1.5, 1.2, 5.0, 1.0])
    affine = size.copy()
    affine[:3, :3] = inv_ornt_aff(axcodes2ornt(tuple(orientation)), (2, 2, 2))[:3, :3].T @ size[:3, :3]
    affine[:3, 3] = (-12.25, 31.5, 7.75)
    assert "".join(nib.aff2axcodes(affine)) == orientation
    return affine


def patch(path: Path, offset: int, code: str, *values: Any) -> Path:
    """Overwrite fields of an uncompressed file."""
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, offset, *values)
    path.write_bytes(content)
    return path


def repack(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the bytes inside a gzip file."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    return path


def make_mgh(path: Path, *, dtype: Any = np.float32, affine: np.ndarray | None = None) -> Path:
    data = np.random.default_rng(3).integers(0, 200, (9, 8, 7)).astype(dtype)
    image = nib.MGHImage(data, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    image.header["tr"], image.header["te"] = 2000.0, 12.5
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".mgz" else content)
    return path


def load(path: Path) -> Any:
    """Read with nibabel alone, every file closed."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix in (".gz", ".mgz") else content
    if path.suffix in (".mgz", ".mgh"):
        return nib.MGHImage.from_bytes(content)
    return (nib.Nifti2Image if content[4:7] == b"n+2" else nib.Nifti1Image).from_bytes(content)


def finer(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """The scan on a grid of half the slice spacing, whose first slice stands a quarter further down."""
    step = np.diag([1.0, 1.0, 0.5, 1.0])
    step[2, 3] = -0.25
    return np.repeat(scan.data, 2, axis=2), scan.affine @ step


def refused(path: Path, match: str) -> None:
    with pytest.raises(InputRefused, match=match) as caught:
        read_scan(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "; " in message  # what to do


# Reading what is good


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_scan_is_read_as_nibabel_reads_it(
    make_nifti: MakeNifti, oblique: np.ndarray, orientation: str, dtype: Any
) -> None:
    path = make_nifti(affine=affine_for(orientation, oblique), dtype=dtype)
    scan, image = read_scan(path), load(path)
    assert scan.data.dtype == np.float32
    assert scan.affine.dtype == np.float64
    assert scan.dtype == np.dtype(dtype)
    assert scan.source == path
    assert scan.notes == ()
    np.testing.assert_array_equal(scan.data, image.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(scan.affine, image.affine)
    np.testing.assert_allclose(scan.voxel_size, image.header.get_zooms(), rtol=1e-6)


def test_scaling_of_an_integer_file_is_applied(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii")
    stored = read_scan(path).data
    patch(path, SLOPE, "<2f", 0.25, -3.0)
    np.testing.assert_array_equal(read_scan(path).data, stored * 0.25 - 3)


def test_both_byte_orders_and_nifti_2_are_read_and_written_alike(make_nifti: MakeNifti, tmp_path: Path) -> None:
    first = read_scan(make_nifti("a.nii"))
    image = nib.Nifti1Image(first.data.astype(np.int16), first.affine, nib.Nifti1Header(endianness=">"))
    image.to_filename(tmp_path / "big.nii")
    second = read_scan(make_nifti("c.nii.gz", image_class=nib.Nifti2Image))
    for scan in (read_scan(tmp_path / "big.nii"), second):
        np.testing.assert_array_equal(scan.data, first.data)
        write_scan(tmp_path / "again.nii", scan.data, scan.affine, scan)
        again = read_scan(tmp_path / "again.nii")
        np.testing.assert_array_equal(again.data, first.data)
        assert again.header.endianness == scan.header.endianness
        assert type(again.header) is type(scan.header)
        np.testing.assert_array_equal(load(tmp_path / "again.nii").get_fdata(), first.data)


def test_one_volume_of_four_axes_is_read_as_three(make_nifti: MakeNifti, tmp_path: Path) -> None:
    data = np.arange(240.0).reshape(6, 5, 8, 1)
    scan = read_scan(make_nifti(data=data))
    assert scan.data.shape == (6, 5, 8)
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    assert load(tmp_path / "out.nii").shape == (6, 5, 8)


def test_a_stack_of_four_slices_is_accepted(make_nifti: MakeNifti) -> None:
    assert read_scan(make_nifti(data=np.arange(64 * 64 * 4).reshape(64, 64, 4) % 977)).data.shape == (64, 64, 4)


def test_a_suffix_counts_in_any_case(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii.gz")
    assert read_scan(path.rename(path.with_name("A.NII.GZ"))).data.shape == (12, 10, 8)


def test_disagreeing_transforms_are_noted_and_the_sform_used(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii")
    srow_x = struct.unpack_from("<4f", path.read_bytes(), SROW_X)
    patch(path, SROW_X, "<4f", *srow_x[:3], srow_x[3] + 0.5)
    scan = read_scan(path)
    assert len(scan.notes) == 1
    assert "differ by up to 0.5 mm; the sform was used" in scan.notes[0]
    assert scan.affine[0, 3] == srow_x[3] + 0.5


def test_transforms_that_part_away_from_the_first_voxel_are_noted(make_nifti: MakeNifti) -> None:
    scan = read_scan(patch(make_nifti("a.nii"), SROW_X, "<f", 1.6))
    assert "differ by up to 1.1 mm" in scan.notes[0]


def test_a_tiny_difference_of_the_transforms_is_not_noted(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii")
    srow_x = struct.unpack_from("<4f", path.read_bytes(), SROW_X)
    assert read_scan(patch(path, SROW_X, "<4f", *srow_x[:3], srow_x[3] + 0.002)).notes == ()


def test_no_orientation_is_noted_and_read_as_ras(make_nifti: MakeNifti) -> None:
    scan = read_scan(make_nifti(codes=(0, 0)))
    assert any("no orientation" in note and "RAS" in note for note in scan.notes)
    np.testing.assert_array_equal(scan.affine, np.diag([1.5, 1.5, 5.0, 1.0]))


def test_an_orientation_code_of_no_meaning_counts_as_none(
    make_nifti: MakeNifti, capfd: pytest.CaptureFixture[str]
) -> None:
    scan = read_scan(patch(make_nifti("a.nii", codes=(0, 1)), QFORM_CODE, "<h", 77))
    assert "no orientation" in scan.notes[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_lengths_in_other_units_are_noted(make_nifti: MakeNifti, unit: str) -> None:
    assert "read as mm" in read_scan(make_nifti(units=(unit, "sec"))).notes[0]


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
def test_mgh_is_read_as_nibabel_reads_it(tmp_path: Path, oblique: np.ndarray, name: str) -> None:
    path = make_mgh(tmp_path / name, dtype=np.int16, affine=oblique)
    scan, image = read_scan(path), load(path)
    np.testing.assert_array_equal(scan.data, image.get_fdata())
    np.testing.assert_allclose(scan.affine, image.affine, atol=1e-6)
    assert scan.dtype == np.dtype(np.int16)
    assert scan.header["te"] == 12.5


def test_mgh_without_orientation_is_noted(tmp_path: Path) -> None:
    scan = read_scan(patch(make_mgh(tmp_path / "a.mgh"), MGH_GOOD_RAS, ">h", 0))
    assert "no orientation" in scan.notes[0]
    assert scan.voxel_size == (1, 1, 1)


def test_nothing_reaches_the_terminal_and_no_text_of_the_header_is_told(
    make_nifti: MakeNifti, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = make_nifti("a.nii", codes=(0, 0), descrip=SECRET, db_name=SECRET)
    patch(path, 0, "<i", 349)  # sizeof_hdr: nibabel repairs and logs it
    scan = read_scan(path)
    assert SECRET not in repr(scan) + "".join(scan.notes)
    refused(patch(path, PIXDIM + 4, "<f", -1), "voxel sizes")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# Refusals: the file


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "no such file")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").mkdir()
    refused(tmp_path / "scan.nii", "a folder")


@pytest.mark.parametrize("name", ["scan.dcm", "scan.nii.bz2", "scan", "scan.img", "scan.hdr"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 400)
    refused(tmp_path / name, r"not an image.*\.nii\.gz")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    refused(tmp_path / "pipe.nii", "not an image")


def test_a_file_that_cannot_be_opened_is_refused(make_nifti: MakeNifti, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_nifti()

    def no_right(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no_right)
    refused(path, "cannot be read")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("a" * 300 + ".nii"), "cannot be read")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.mgh"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "not a|too early")


@pytest.mark.parametrize("magic", [b"ni1\0", b"n+3\0", b"\0\0\0\0"])
def test_wrong_magic_is_refused(make_nifti: MakeNifti, magic: bytes) -> None:
    refused(patch(make_nifti("a.nii"), MAGIC, "4s", magic), "not a single-file NIfTI")


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(5000)
    for name, words in (("a.nii", "NIfTI"), ("a.nii.gz", "not gzip"), ("a.mgz", "not gzip"), ("a.mgh", "MGH")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, words)


def test_a_plain_file_with_the_packed_suffix_is_refused(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii")
    refused(path.rename(path.with_name("a.nii.gz")), "not gzip")


@pytest.mark.parametrize("kept", [30, 600, -1, -8])
def test_a_cut_off_gzip_file_is_refused(make_nifti: MakeNifti, kept: int) -> None:
    path = make_nifti()
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "ends too early")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_cut_off_voxels_are_refused(make_nifti: MakeNifti, name: str) -> None:
    path = make_nifti(name)
    cut = repack if name.endswith(".gz") else lambda path, change: path.write_bytes(change(path.read_bytes()))
    cut(path, lambda content: content[:-100])
    refused(path, "cut off: 1820 of 1920 bytes")


def test_cut_off_mgh_is_refused(tmp_path: Path) -> None:
    path = make_mgh(tmp_path / "a.mgh")
    path.write_bytes(path.read_bytes()[:1000])
    refused(path, "cut off")


@pytest.mark.parametrize("place", [-6, -2, 500])
def test_a_changed_byte_in_gzip_is_refused(make_nifti: MakeNifti, place: int) -> None:
    path = make_nifti()
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)
    refused(path, "not gzip or damaged|ends too early")


def test_a_gzip_file_with_an_impossible_block_is_refused(make_nifti: MakeNifti) -> None:
    path = repack(make_nifti(), lambda content: content)
    content = bytearray(path.read_bytes())
    content[10] = 0x07  # the block type that deflate reserves
    path.write_bytes(content)
    refused(path, "not gzip or damaged")


def test_garbage_after_gzip_is_refused(make_nifti: MakeNifti) -> None:
    path = make_nifti()
    path.write_bytes(path.read_bytes() + b"garbage")
    refused(path, "not gzip or damaged")


def test_a_gzip_bomb_behind_a_small_image_is_refused(make_nifti: MakeNifti) -> None:
    path = make_nifti()
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(65 * 1024**2), compresslevel=1))
    refused(path, "much more data")


# Refusals: the header


@pytest.mark.parametrize("size", [(600, 600, 600), (10000, 10000, 10000), (32767, 32767, 32767)])
def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(
    make_nifti: MakeNifti, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int]
) -> None:
    monkeypatch.setattr("lfmri_runtime.volume.reading._read_voxels", lambda *arguments: pytest.fail("voxels were read"))
    refused(patch(make_nifti("a.nii"), DIM + 2, "<3h", *size), f"promises.*at most {MAX_VOXELS}")


def test_the_cap_itself_may_be_promised(make_nifti: MakeNifti) -> None:
    refused(patch(make_nifti("a.nii"), DIM + 2, "<3h", 512, 512, 512), "cut off: 1920 of")


def test_a_nifti_2_header_of_absurd_size_is_refused(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii", image_class=nib.Nifti2Image)
    refused(patch(path, 24, "<3q", 2**40, 2**40, 2**40), "promises")


def test_an_mgh_header_of_absurd_size_is_refused(tmp_path: Path) -> None:
    refused(patch(make_mgh(tmp_path / "a.mgh"), MGH_DIMS, ">3i", 2**30, 2**30, 2**30), "promises")


@pytest.mark.parametrize("offset", [0.0, 348.0, -16.0, 1e12, float("nan"), float("inf")])
def test_an_impossible_place_of_the_voxels_is_refused(make_nifti: MakeNifti, offset: float) -> None:
    refused(patch(make_nifti("a.nii"), VOX_OFFSET, "<f", offset), "voxels start")


def test_several_volumes_are_refused_with_a_way_out(make_nifti: MakeNifti) -> None:
    refused(make_nifti(data=np.arange(480.0).reshape(6, 5, 8, 2)), r"2 volumes .*img\.slicer\[\.\.\., 0\]")


def test_several_mgh_frames_are_refused(tmp_path: Path) -> None:
    refused(patch(make_mgh(tmp_path / "a.mgh"), MGH_DIMS + 12, ">i", 3), "3 volumes")


def test_fewer_than_three_axes_are_refused(make_nifti: MakeNifti) -> None:
    refused(make_nifti(data=np.arange(20.0).reshape(4, 5)), "2 axes")


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_without_voxels_is_refused(make_nifti: MakeNifti, axis: int, size: int) -> None:
    refused(patch(make_nifti("a.nii"), DIM + 2 + 2 * axis, "<h", size), f"{size}.* voxels in the header")


@pytest.mark.parametrize("axes", [0, 8, -3])
def test_an_impossible_number_of_axes_is_refused(make_nifti: MakeNifti, axes: int) -> None:
    refused(patch(make_nifti("a.nii"), DIM, "<h", axes), "axes in the header")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_refused(make_nifti: MakeNifti, axis: int) -> None:
    shape = [6, 5, 4]
    shape[axis] = 1
    refused(make_nifti(data=np.arange(np.prod(shape)).reshape(shape)), "single slice")


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_voxels_are_refused(make_nifti: MakeNifti, dtype: Any) -> None:
    refused(make_nifti(dtype=dtype), "complex numbers")


def test_colours_are_refused(tmp_path: Path) -> None:
    data = np.zeros((5, 5, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "colours")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "are colours or of a type"),
        (1, "are colours or of a type"),
        (31, "no sense"),
        (1536, "are (colours|floats)"),
    ],
)
def test_unusable_types_are_refused(make_nifti: MakeNifti, code: int, words: str) -> None:
    refused(patch(make_nifti("a.nii"), DATATYPE, "<h", code), words)


def test_an_unknown_mgh_type_is_refused(tmp_path: Path) -> None:
    refused(patch(make_mgh(tmp_path / "a.mgh"), MGH_TYPE, ">i", 99), "no sense")


def test_an_mgh_file_of_another_version_is_refused(tmp_path: Path) -> None:
    refused(patch(make_mgh(tmp_path / "a.mgh"), 0, ">i", 2), "version 1")


def test_a_scaling_without_sense_is_refused(make_nifti: MakeNifti) -> None:
    refused(patch(make_nifti("a.nii"), SLOPE, "<2f", 2.0, float("nan")), "no sense")


@pytest.mark.parametrize("size", [0.0, -1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_voxel_sizes_that_are_no_lengths_are_refused(make_nifti: MakeNifti, axis: int, size: float) -> None:
    refused(patch(make_nifti("a.nii"), PIXDIM + 4 + 4 * axis, "<f", size), "voxel sizes of")


def test_an_mgh_voxel_size_of_zero_is_refused(tmp_path: Path) -> None:
    refused(patch(make_mgh(tmp_path / "a.mgh"), MGH_DELTA, ">f", 0), "voxel sizes of")


@pytest.mark.parametrize("size", [0.04, 51.0, 1000.0])
def test_voxel_sizes_of_no_scanner_are_refused(make_nifti: MakeNifti, size: float) -> None:
    refused(make_nifti(affine=np.diag([1.0, 1.0, size, 1.0])), "expected 0.05 to 50.0 mm")


def test_a_singular_transform_is_refused(make_nifti: MakeNifti) -> None:
    path = patch(make_nifti("a.nii", codes=(1, 0)), SROW_X, "<8f", 1, 1, 0, 0, 1, 1, 0, 0)
    refused(path, "singular")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("codes", [(1, 0), (1, 1)])
def test_a_transform_that_is_not_finite_is_refused(
    make_nifti: MakeNifti, number: float, codes: tuple[int, int]
) -> None:
    refused(patch(make_nifti("a.nii", codes=codes), SROW_X, "<f", number), "NaN or infinity")


def test_an_origin_far_outside_any_room_is_refused(make_nifti: MakeNifti) -> None:
    refused(patch(make_nifti("a.nii"), SROW_X + 12, "<f", -3e30), "its origin is more than")


def test_a_qform_that_is_no_rotation_is_refused(make_nifti: MakeNifti) -> None:
    refused(patch(make_nifti("a.nii", codes=(0, 1)), QUATERN_B, "<3f", 2, 2, 2), "no rotation")


# Refusals: the voxels


def test_broken_numbers_are_counted_and_refused(make_nifti: MakeNifti) -> None:
    data = np.random.default_rng(1).random((6, 5, 4))
    data.flat[[3, 17]] = np.nan
    data.flat[40] = -np.inf
    refused(make_nifti(data=data, dtype=np.float32), "3 of 120 voxels are NaN or infinite")


def test_numbers_beyond_float32_are_refused(make_nifti: MakeNifti) -> None:
    data = np.ones((6, 5, 4))
    data[0, 0, 0] = 1e200
    refused(make_nifti(data=data, dtype=np.float64), "1 of 120 voxels")


def test_all_zeros_are_refused(make_nifti: MakeNifti) -> None:
    refused(make_nifti(data=np.zeros((6, 5, 4))), "every voxel is zero")


def test_a_constant_is_refused(make_nifti: MakeNifti) -> None:
    refused(make_nifti(data=np.full((6, 5, 4), 7)), "same value")


def test_a_mask_may_be_constant_but_not_empty(make_nifti: MakeNifti) -> None:
    assert read_mask(make_nifti(data=np.ones((6, 5, 4)))).data.all()
    with pytest.raises(InputRefused, match="every voxel is zero"):
        read_mask(make_nifti(data=np.zeros((6, 5, 4))))
    with pytest.raises(InputRefused, match="120 of 120 voxels are NaN"):
        read_mask(make_nifti(data=np.full((6, 5, 4), np.nan), dtype=np.float32))


# Writing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_round_trip_keeps_geometry_codes_units_and_type(
    make_nifti: MakeNifti, tmp_path: Path, oblique: np.ndarray, orientation: str, codes: tuple[int, int], dtype: Any
) -> None:
    path = make_nifti(affine=affine_for(orientation, oblique), codes=codes, dtype=dtype, units=("mm", "msec"))
    scan = read_scan(path)
    write_scan(tmp_path / "out.nii.gz", scan.data, scan.affine, scan)
    before, after = load(path), load(tmp_path / "out.nii.gz")
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == codes
    assert after.header.get_xyzt_units() == ("mm", "msec")
    assert after.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(after.header.get_qform(), before.header.get_qform())
    np.testing.assert_array_equal(after.get_fdata(dtype=np.float32), before.get_fdata(dtype=np.float32))
    assert read_scan(tmp_path / "out.nii.gz").notes == ()


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_new_grid_moves_both_transforms_and_the_sizes(
    make_nifti: MakeNifti, tmp_path: Path, oblique: np.ndarray, orientation: str, codes: tuple[int, int]
) -> None:
    path = make_nifti(affine=affine_for(orientation, oblique), codes=codes, slice_end=7, slice_code=1)
    scan = read_scan(path)
    data, affine = finer(scan)
    write_scan(tmp_path / "out.nii", data, affine, scan)
    header = load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == codes
    assert header.get_data_shape() == (12, 10, 16)
    np.testing.assert_allclose(header.get_zooms(), (*scan.voxel_size[:2], 2.5), rtol=1e-5)
    if codes[0]:
        np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    if codes[1]:
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)
    assert (header["slice_end"], header["slice_code"]) == (0, 0)
    assert read_scan(tmp_path / "out.nii").notes == ()


def test_on_the_same_grid_the_geometry_is_kept_to_the_byte(make_nifti: MakeNifti, tmp_path: Path) -> None:
    path = make_nifti("a.nii", affine=np.diag([-1.5, -1.5, 5.0, 1.0]), slice_end=7, slice_code=1)
    patch(path, QUATERN_B, "<3f", 0, 0, -1)  # the same half turn as 0, 0, 1, which a new calculation gives
    scan = read_scan(path)
    assert scan.notes == ()
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    assert (tmp_path / "out.nii").read_bytes()[:352] == path.read_bytes()[:352]


def test_a_header_without_orientation_stays_without(make_nifti: MakeNifti, tmp_path: Path) -> None:
    scan = read_scan(make_nifti(codes=(0, 0)))
    write_scan(tmp_path / "out.nii", *finer(scan), scan)
    header = load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    np.testing.assert_array_equal(header.get_zooms(), (1.5, 1.5, 2.5))


def test_transforms_that_disagree_keep_their_difference(make_nifti: MakeNifti, tmp_path: Path) -> None:
    path = make_nifti("a.nii")
    patch(path, SROW_X + 12, "<f", 0.5)
    scan = read_scan(path)
    for data, affine in ((scan.data, scan.affine), finer(scan)):
        write_scan(tmp_path / "out.nii", data, affine, scan)
        assert read_scan(tmp_path / "out.nii").notes == scan.notes


def test_free_fields_are_kept_and_extensions_are_not(make_nifti: MakeNifti, tmp_path: Path) -> None:
    image = load(make_nifti("a.nii", descrip=b"TE=90", cal_max=800))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    image.to_filename(tmp_path / "b.nii")
    scan = read_scan(tmp_path / "b.nii")
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    written = load(tmp_path / "out.nii")
    assert len(written.header.extensions) == 0
    assert SECRET.encode() not in (tmp_path / "out.nii").read_bytes()
    assert written.header["descrip"].item() == b"TE=90"
    assert written.header["cal_max"] == 800
    np.testing.assert_array_equal(written.get_fdata(), image.get_fdata())


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_integers_with_many_levels_are_plainly_rounded(make_nifti: MakeNifti, tmp_path: Path, shift: float) -> None:
    scan = read_scan(make_nifti("a.nii"))
    write_scan(tmp_path / "out.nii", scan.data + shift, scan.affine, scan)
    image = load(tmp_path / "out.nii")
    assert image.dataobj.slope == 1
    assert image.dataobj.inter == 0
    np.testing.assert_array_equal(image.get_fdata(), scan.data)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int8])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.0, 2.0), (5.0, 5.5), (0.0, 1e6), (-1e-4, 1e-4), (-500.25, 1500.0)]
)
def test_integers_with_few_levels_or_too_large_are_scaled_over_the_type(
    make_nifti: MakeNifti, tmp_path: Path, dtype: Any, low: float, high: float
) -> None:
    scan = read_scan(make_nifti("a.nii", dtype=dtype))
    data = np.linspace(low, high, scan.data.size, dtype=np.float32).reshape(scan.data.shape)
    data.flat[7:9] = max(low, 0)
    write_scan(tmp_path / "out.nii", data, scan.affine, scan)
    written = read_scan(tmp_path / "out.nii")
    assert written.dtype == np.dtype(dtype)
    step = (high - low) / min(np.iinfo(dtype).max, 32767)  # the widest that the rule may take
    plain = 0.5 if high - low > 1000 else 0.0
    assert np.abs(written.data - data).max() <= max(step / 2, plain) * 1.01
    if low >= 0 or np.dtype(dtype).kind == "i":
        assert not written.data[data == 0].any()


def test_the_steps_of_the_input_are_kept_where_they_are_fine_enough(make_nifti: MakeNifti, tmp_path: Path) -> None:
    path = patch(make_nifti("a.nii"), SLOPE, "<2f", 0.25, -3.0)
    scan = read_scan(path)
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    assert (tmp_path / "out.nii").read_bytes()[SLOPE : SLOPE + 8] == struct.pack("<2f", 0.25, -3.0)
    np.testing.assert_array_equal(read_scan(tmp_path / "out.nii").data, scan.data)


@pytest.mark.parametrize("target", SUFFIXES)
def test_a_mask_is_kept_as_it_is(make_nifti: MakeNifti, tmp_path: Path, target: str) -> None:
    scan = read_scan(make_nifti("a.nii"))
    mask = scan.data > 200
    write_scan(tmp_path / ("out" + target), mask.astype(np.float32), scan.affine, scan)
    image = load(tmp_path / ("out" + target))
    assert image.get_data_dtype().newbyteorder("=") == np.dtype(np.int16)
    np.testing.assert_array_equal(np.asarray(image.dataobj.get_unscaled()), mask)


def test_steps_that_float32_rounds_are_recognised(make_nifti: MakeNifti, tmp_path: Path) -> None:
    data = np.arange(500).repeat(2).reshape(10, 10, 10)
    path = patch(make_nifti("a.nii", data=data), SLOPE, "<2f", 0.1, 0.7)
    scan = read_scan(path)
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    assert (tmp_path / "out.nii").read_bytes() == path.read_bytes()


def test_eight_bits_are_kept_as_they_are(make_nifti: MakeNifti, tmp_path: Path) -> None:
    data = np.arange(256).repeat(2).reshape(8, 8, 8)
    scan = read_scan(make_nifti("a.nii", data=data, dtype=np.uint8))
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    assert load(tmp_path / "out.nii").dataobj.slope == 1


def test_a_constant_result_can_be_written(make_nifti: MakeNifti, tmp_path: Path) -> None:
    scan = read_scan(make_nifti("a.nii"))
    write_scan(tmp_path / "out.nii", np.full(scan.data.shape, 2.5), scan.affine, scan)
    np.testing.assert_allclose(load(tmp_path / "out.nii").get_fdata(), 2.5, rtol=1e-6)


@pytest.mark.parametrize("target", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_every_format_becomes_every_other(
    make_nifti: MakeNifti, tmp_path: Path, oblique: np.ndarray, source: str, target: str
) -> None:
    name = "in" + source
    path = make_nifti(name, affine=oblique) if "nii" in source else make_mgh(tmp_path / name, affine=oblique)
    scan = read_scan(path)
    for data, affine in ((scan.data, scan.affine), finer(scan)):
        write_scan(tmp_path / ("out" + target), data, affine, scan)
        image, again = load(tmp_path / ("out" + target)), read_scan(tmp_path / ("out" + target))
        np.testing.assert_array_equal(image.get_fdata(), data)
        np.testing.assert_array_equal(again.data, data)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        np.testing.assert_allclose(again.affine, affine, atol=1e-5)
        assert again.dtype == scan.dtype
        assert again.notes == ()


def test_a_nifti_made_from_mgh_says_what_it_is(tmp_path: Path, oblique: np.ndarray) -> None:
    scan = read_scan(make_mgh(tmp_path / "a.mgz", affine=oblique))
    write_scan(tmp_path / "out.nii.gz", scan.data, scan.affine, scan)
    header = load(tmp_path / "out.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_sheared_mgh_becomes_a_nifti_without_qform(tmp_path: Path) -> None:
    sheared = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]])
    scan = read_scan(make_mgh(tmp_path / "a.mgh", affine=sheared))
    write_scan(tmp_path / "out.nii", scan.data, scan.affine, scan)
    again = read_scan(tmp_path / "out.nii")
    assert again.notes == ()
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-6)


def test_mgh_keeps_its_footer_and_drops_its_tags(tmp_path: Path) -> None:
    path = make_mgh(tmp_path / "a.mgh")
    path.write_bytes(path.read_bytes() + SECRET.encode())
    scan = read_scan(path)
    write_scan(tmp_path / "out.mgz", scan.data, scan.affine, scan)
    header = load(tmp_path / "out.mgz").header
    assert (header["tr"], header["te"]) == (2000, 12.5)
    assert SECRET.encode() not in gzip.decompress((tmp_path / "out.mgz").read_bytes())


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.uint32])
def test_types_that_mgh_lacks_become_float32(make_nifti: MakeNifti, tmp_path: Path, dtype: Any) -> None:
    scan = read_scan(make_nifti(dtype=dtype))
    write_scan(tmp_path / "out.mgz", scan.data, scan.affine, scan)
    assert read_scan(tmp_path / "out.mgz").dtype == np.dtype(np.float32)


def test_mgh_integers_become_float32_where_rounding_would_lose_contrast(tmp_path: Path) -> None:
    scan = read_scan(make_mgh(tmp_path / "a.mgh", dtype=np.int16))
    write_scan(tmp_path / "out.mgh", scan.data * 100, scan.affine, scan)
    assert read_scan(tmp_path / "out.mgh").dtype == np.dtype(np.int16)
    write_scan(tmp_path / "out.mgh", scan.data / 100, scan.affine, scan)
    assert read_scan(tmp_path / "out.mgh").dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(read_scan(tmp_path / "out.mgh").data, (scan.data / 100).astype(np.float32))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_bytes_depend_on_the_scan_only(
    make_nifti: MakeNifti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    scan = read_scan(make_nifti(dtype=np.float32))
    write_scan(tmp_path / f"a{suffix}", scan.data, scan.affine, scan)
    monkeypatch.setattr("time.time", lambda: 5e8)
    write_scan(tmp_path / f"b{suffix}", np.ascontiguousarray(scan.data), scan.affine, scan)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_writing_changes_neither_the_scan_nor_the_input_file(make_nifti: MakeNifti, tmp_path: Path) -> None:
    path = make_nifti()
    content, scan = path.read_bytes(), read_scan(path)
    header, data = scan.header.binaryblock, scan.data.copy()
    write_scan(tmp_path / "out.nii", *finer(scan), scan)
    assert scan.header.binaryblock == header
    np.testing.assert_array_equal(scan.data, data)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["out.img", "out", "out.nii.bz2", "out.png"])
def test_an_unknown_output_suffix_is_a_usage_error(make_nifti: MakeNifti, tmp_path: Path, name: str) -> None:
    scan = read_scan(make_nifti())
    with pytest.raises(UsageError, match=r"unknown kind of image.*nii\.gz"):
        write_scan(tmp_path / name, scan.data, scan.affine, scan)
    assert not (tmp_path / name).exists()


def test_what_is_no_volume_is_not_written(make_nifti: MakeNifti, tmp_path: Path) -> None:
    scan = read_scan(make_nifti())
    broken = scan.data.copy()
    broken[0, 0, 0] = np.nan
    for data, affine in ((broken, scan.affine), (scan.data[0], scan.affine), (scan.data, scan.affine[:3])):
        with pytest.raises(ValueError, match="finite data"):
            write_scan(tmp_path / "out.nii", data, affine, scan)
    assert not (tmp_path / "out.nii").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_real_file_size_limit_leaves_no_file(make_nifti: MakeNifti, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("resource")
    path = make_nifti(data=np.random.default_rng(0).random((30, 30, 30)), dtype=np.float32)
    code = (
        "import resource, sys; from pathlib import Path; from lfmri_runtime.volume import read_scan, write_scan\n"
        "from lfmri_runtime.errors import TryAgainLater\n"
        "scan = read_scan(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: write_scan(Path(sys.argv[2]), scan.data, scan.affine, scan)\n"
        "except TryAgainLater as error: print(error)"
    )
    out = tmp_path / "out" / f"scan{suffix}"
    out.parent.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME)}
    done = subprocess.run(
        [sys.executable, "-c", code, path, out], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "disk full" in done.stdout, done.stderr
    assert done.stderr == ""
    assert list(out.parent.iterdir()) == []


def test_importing_the_module_does_not_load_nibabel() -> None:
    code = "import lfmri_runtime.volume, lfmri_runtime.files, sys; print('nibabel' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_what_was_read_is_not_tied_to_the_file(make_nifti: MakeNifti) -> None:
    path = make_nifti("a.nii")
    scan = read_scan(path)
    data = scan.data.copy()
    path.write_bytes(io.BytesIO(path.read_bytes()).getvalue()[:400])
    np.testing.assert_array_equal(scan.data, data)
