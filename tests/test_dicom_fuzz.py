"""Damaged DICOM: whatever a file holds, it is read or refused by name, in little memory and without a word of it."""

import resource
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.dicom.derived import write_derived
from lfmri_runtime.dicom.parsing import quiet
from lfmri_runtime.dicom.selection import reason_to_pass_by
from lfmri_runtime.dicom.series import group_files, read_series
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.errors import InputRefused

from .bundles import MakeBundle
from .dicoms import SECRETS, classic, enhanced

CASES = 250
#: Beyond what the process has already; the files are of a few kilobytes.
MEMORY = 256 * 1024**2
LIES = (b"\xff\xff\xff\xff", b"\xfe\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x40")
VALUES = (
    b"",
    b"\0",
    b"-1 ",
    b"1e308 ",
    b"NAN ",
    b"DOE^JANE" * 50,
    b"\xff" * 64,
    b"1\\2\\3\\4\\5\\6\\7 ",
    struct.pack("<Q", 2**63),
)
REPORT = {
    **{"steps": 1, "samples": 1, "seed": 0, "grid": "input", "thick_axis": "S"},
    "backend": {"name": "onnxruntime", "precision": "float32"},
    "consistency": {"largest": None, "threshold": 11.0, "place_mm": None, "rms": None, "noise": None},
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let the process have MEMORY more than it has: what a lie promises is far above that."""
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize:"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _encoded(ds: Dataset, syntax: str) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)


def series_of(kind: str, folder: Path) -> list[Path]:
    """A small good series."""
    if kind == "frames":
        folder.mkdir()
        return [enhanced(folder / "a.dcm")]
    syntax = {"classic": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian, "run lengths": RLELossless}[kind]
    return classic(folder, shape=(20, 26, 2), change=lambda ds, k: _encoded(ds, syntax))


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with one kind of damage, mostly in its header."""
    damaged = bytearray(content)
    header = max(content.rfind(b"\xe0\x7f\x10\x00"), 200)
    places = rng.integers(128, header if rng.random() < 0.9 else len(content) - 8, 8)
    kind = rng.integers(5)
    if kind == 0:
        for place in places[: rng.integers(1, 8)]:
            damaged[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del damaged[int(rng.integers(len(content))) :]
    elif kind == 2:
        for place in places[: rng.integers(1, 4)]:
            damaged[place : place + 4] = LIES[rng.integers(len(LIES))]
    elif kind == 3:
        start, end = sorted(int(place) for place in places[:2])
        damaged[start:start] = damaged[start:end]
    else:
        return edited(content, rng)
    return bytes(damaged)


def edited(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with some elements, at any depth, of another value, or without them."""
    stream = BytesIO()
    with quiet():
        ds = dcmread(BytesIO(content))
        try:
            for _ in range(rng.integers(1, 4)):
                edit(ds, rng)
            ds.save_as(stream, enforce_file_format=True)
        except Exception:  # noqa: BLE001 - pydicom itself cannot read or write this one
            return content[: len(content) // 2]
    return stream.getvalue()


def edit(ds: Dataset, rng: np.random.Generator) -> None:
    implicit, little = ds.original_encoding
    while True:
        tag = sorted(ds.keys())[rng.integers(len(ds))]
        element = ds[tag]
        if element.VR != "SQ" or not element.value or rng.random() < 0.2:
            break
        ds = element.value[rng.integers(len(element.value))]
    if rng.random() < 0.2:
        del ds[tag]
        return
    value = VALUES[rng.integers(len(VALUES))]
    ds[tag] = RawDataElement(tag, element.VR, len(value), value, 0, implicit, little)


def attempt(paths: list[Path], out: Path, bundle: Bundle) -> str:
    """Do all that a surface does; the refusal, or nothing."""
    try:
        groups = group_files(paths)
        for files in groups.values():
            reason_to_pass_by(files)
        series = read_series(paths)
        result = Enhanced(series.data, None, series.affine, 1.0, REPORT, ())
        write_derived(out, series, result, bundle=bundle)
    except InputRefused as refusal:
        return str(refusal)
    return ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["classic", "implicit", "run lengths", "frames"])
def test_damaged_files_are_read_or_refused(
    kind: str,
    tmp_path: Path,
    make_bundle: MakeBundle,
    little_memory: None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = open_bundle(make_bundle())
    paths = series_of(kind, tmp_path / "in")
    good = [path.read_bytes() for path in paths]
    refusals = []
    for case in range(CASES):
        rng = np.random.default_rng([case, len(kind)])
        whole = rng.integers(2 * len(paths)) if len(paths) > 1 else -1
        for number, (path, content) in enumerate(zip(paths, good, strict=True)):
            path.write_bytes(content if number == whole else mutated(content, rng))
        refusals.append(attempt(paths, tmp_path / "out", bundle))
    said = [refusal.replace(str(tmp_path), "") for refusal in refusals]
    assert not [refusal for refusal in said if "\n" in refusal or any(word in refusal for word in SECRETS)]
    assert min(said.count(""), len(set(said))) > 10
    assert caplog.text == ""
    for path, content in zip(paths, good, strict=True):
        path.write_bytes(content)
    assert attempt(paths, tmp_path / "out", bundle) == ""
    assert capfd.readouterr() == ("", "")


def test_sequences_without_end_are_refused(tmp_path: Path, make_bundle: MakeBundle, little_memory: None) -> None:
    paths = series_of("classic", tmp_path / "in")
    content = paths[0].read_bytes()
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    at = content.index(b"\x10\x00\x10\x00PN")
    paths[0].write_bytes(content[:at] + opened + content[at:])
    assert "damaged or cut off" in attempt(paths, tmp_path / "out", open_bundle(make_bundle()))
