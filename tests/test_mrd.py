"""The MRD server, by a client written from the wire facts and by the ismrmrd package."""

import ctypes
import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ismrmrd
import nibabel as nib
import numpy as np
import pytest

from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ModelSettings, MrdSettings, OutputSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.mrd import image as mrd_image
from lfmri_runtime.mrd.parameters import Parameters
from lfmri_runtime.mrd.server import MrdServer

from . import mrd_client as mrd
from .bundles import MakeBundle
from .heads import head, places

RAS = np.diag([-1.0, -1.0, 1.0])
NAME = mrd.configuration("no-such-configuration")
CHANGING = {"data_type": 2, "image_series_index": 128, "attribute_string_len": 194}
WIDTHS = {"data_type": 2, "image_series_index": 2, "attribute_string_len": 4}


class Recorder:
    """Keeps the journal's events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, fields: dict[str, Any]) -> None:
        self.events.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


@pytest.fixture(scope="module")
def folder(make_bundle: MakeBundle) -> Path:
    return make_bundle("noisy")


@pytest.fixture(scope="module")
def enhancer(folder: Path) -> Enhancer:
    """The core by itself: what the server must give."""
    return Enhancer(open_bundle(folder))


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def address(folder: Path, recorder: Recorder) -> Iterator[tuple[str, int]]:
    station = Station(ModelSettings(backend="onnxruntime", bundle=str(folder), warm_side=8), Journal([recorder]))
    server = MrdServer(MrdSettings(connections=10), OutputSettings(label="the site's text"), station)
    server.start()
    yield server.address
    assert server.trouble() is None
    server.stop()
    station.close()


def scan(
    shape: tuple[int, int, int], size: tuple[float, ...] = (1.6, 1.6, 5.0), *, dtype: str = "<u2", tilt: float = 0
):
    """A head in (x, y, slice) voxels whose x, y and slices run left, back, up (LPS), and its affine."""
    affine = np.eye(4)
    affine[:3, :3] = RAS @ np.diag(size)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return (head(places(shape, affine) / 6) * (1 + tilt)).astype(dtype), affine


def slices(data: np.ndarray, gap: float = 5.0, **fields: Any) -> list[bytes]:
    """One message for each slice, with its position."""
    view = {"field_of_view": (data.shape[0] * 1.6, data.shape[1] * 1.6, gap)}
    return [
        mrd.image(
            data[:, :, k].T[None],
            **{
                "position": (0.0, 0.0, k * gap - 40),
                "index": (0, k, 0, 0, 0, 0),
                "image_index": k + 1,
                **view,
                **fields,
            },
        )
        for k in range(data.shape[2])
    ]


def expected(enhancer: Enhancer, data: np.ndarray, affine: np.ndarray, **options: Any) -> np.ndarray:
    """The core's result in the scan's own data type, (slice, y, x)."""
    mean = enhancer.enhance(data.astype(np.float32), affine, grid="input", **options).mean.T
    if data.dtype.kind == "f":
        return mean.astype(data.dtype)
    limits = np.iinfo(data.dtype)
    return np.clip(np.rint(mean.astype(np.float64)), limits.min, limits.max).astype(data.dtype)


def pixels(images: list[tuple[bytes, bytes, np.ndarray]]) -> np.ndarray:
    return np.concatenate([item[2][0] for item in images])


def masked(raw: bytes) -> bytes:
    """A header without the fields that an answer may change."""
    kept = bytearray(raw)
    for name, offset in CHANGING.items():
        kept[offset : offset + WIDTHS[name]] = bytes(WIDTHS[name])
    return bytes(kept)


def raw_of(message: bytes) -> bytes:
    return message[2:200]


def test_layouts_are_those_of_the_reference_package() -> None:
    assert ctypes.sizeof(ismrmrd.ImageHeader) == mrd_image.HEADER.size == 198
    for name, offset in CHANGING.items():
        assert getattr(ismrmrd.ImageHeader, name).offset == offset
    raw = mrd.header(matrix_size=(3, 4, 5), index=(1, 2, 3, 4, 5, 6), image_type=2, image_series_index=9)
    ours, theirs = mrd_image.ImageHeader.parse(raw), ismrmrd.ImageHeader.from_buffer_copy(raw)
    names = ("matrix_size", "field_of_view", "position", "read_dir", "phase_dir", "slice_dir")
    for name in names:
        assert list(getattr(ours, name)) == list(getattr(theirs, name))
    frame = (theirs.average, theirs.contrast, theirs.phase, theirs.repetition, theirs.set)
    assert (ours.frame, ours.slice) == (frame, theirs.slice)
    assert (ours.image_type, ours.series) == (theirs.image_type, theirs.image_series_index)


@pytest.mark.filterwarnings("ignore:This function currently returns:UserWarning")  # the package's word on itself
def test_non_square_slices_out_and_back_through_files(
    address: tuple[str, int], enhancer: Enhancer, tmp_path: Path
) -> None:
    data, affine = scan((112, 136, 36))
    with ismrmrd.Dataset(str(tmp_path / "in.h5"), "dataset") as file:
        for message in slices(data):
            image = ismrmrd.Image.from_bytes(message[2:])
            image.meta = {"DicomJson": "e30=", "ImageProcessingHistory": "FIRST"}
            file.append_image("image_0", image)
    with ismrmrd.Dataset(str(tmp_path / "in.h5"), "dataset", create_if_needed=False) as file:
        sent = [file.read_image("image_0", n) for n in range(file.number_of_images("image_0"))]
    messages = [struct.pack("<H", 1022) + image.to_bytes() for image in sent]
    answer = mrd.exchange(address, NAME, mrd.text(3, mrd.header_xml((112, 136))), *messages, mrd.CLOSE)
    assert answer.closed
    assert answer.texts == []
    with ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset") as file:
        for raw, attributes, content in answer.series(1000):
            assert ismrmrd.ImageHeader.from_buffer_copy(raw).attribute_string_len == len(attributes)
            whole = raw + struct.pack("<Q", len(attributes)) + attributes + content.tobytes()
            file.append_image("image_1000", ismrmrd.Image.from_bytes(whole))
    with ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", create_if_needed=False) as file:
        back = [file.read_image("image_1000", n) for n in range(file.number_of_images("image_1000"))]
    assert len(answer.images) == len(back) == 36
    assert [masked(bytes(image.getHead())) for image in back] == [masked(bytes(image.getHead())) for image in sent]
    np.testing.assert_array_equal(np.concatenate([image.data[0] for image in back]), expected(enhancer, data, affine))
    meta = back[0].meta
    assert {meta["DataRole"], meta["Keep_image_geometry"], meta["DicomJson"]} == {"Image", "1", "e30="}
    bundle = enhancer.bundle
    assert meta["ImageProcessingHistory"] == ["FIRST", "LFMRI", "by-hand 0.0.1", f"sha256 {bundle.sha256}"]
    assert meta["SequenceDescriptionAdditional"] == "the site's text"
    assert float(meta["WindowWidth"]) == pytest.approx(2 * float(meta["WindowCenter"]), abs=1.1)


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<i4", "<f4", "<f8"])
def test_every_real_data_type_comes_back_as_it_went(address: tuple[str, int], enhancer: Enhancer, dtype: str) -> None:
    data, affine = scan((16, 18, 4), dtype=dtype)
    answer = mrd.exchange(address, NAME, mrd.text(3, mrd.header_xml((16, 18))), *slices(data), mrd.CLOSE)
    assert answer.texts == []
    result = pixels(answer.series(1000))
    assert result.dtype == data.dtype
    np.testing.assert_array_equal(result, expected(enhancer, data, affine))


def test_a_volume_in_one_image_and_slices_in_any_order(address: tuple[str, int], enhancer: Enhancer) -> None:
    data, affine = scan((16, 18, 6))
    wanted = expected(enhancer, data, affine)
    xml = mrd.header_xml((16, 18))
    whole = mrd.exchange(address, NAME, mrd.text(3, xml), mrd.image(np.ascontiguousarray(data.T)), mrd.CLOSE)
    np.testing.assert_array_equal(pixels(whole.images), wanted)
    order = [3, 0, 5, 1, 4, 2]
    mixed = [slices(data, index=(0, 0, 0, 0, 0, 0))[k] for k in order]  # only the positions tell
    answer = mrd.exchange(address, NAME, mrd.text(3, xml), *mixed, mrd.CLOSE)
    np.testing.assert_array_equal(pixels(answer.images), wanted[order])
    assert [masked(item[0]) for item in answer.images] == [masked(raw_of(message)) for message in mixed]
    by_index = [slices(data, position=(0.0, 0.0, 0.0))[k] for k in order]
    answer = mrd.exchange(address, NAME, mrd.text(3, xml), *by_index, mrd.CLOSE)
    np.testing.assert_array_equal(pixels(answer.images), wanted[order])
    assert "ordered by slice index" in answer.texts[0]


def test_frames_are_volumes_and_series_leave_when_they_end(address: tuple[str, int], enhancer: Enhancer) -> None:
    first, affine = scan((16, 18, 4))
    second, _ = scan((16, 18, 4), tilt=0.5)
    echoes = [
        slices(data, index=(0, 0, contrast, 0, 0, 0))[k]
        for k in range(4)
        for contrast, data in ((0, first), (1, second))
    ]
    with mrd.connect(address) as client:
        client.sendall(b"".join((NAME, mrd.text(3, mrd.header_xml((16, 18))), *echoes)))
        client.sendall(slices(first, image_series_index=1)[0])  # ends the series before it
        received = bytearray()
        while len(received) < 8 * (198 + 16 * 18 * 2):
            received += client.recv(1 << 16)  # comes while the second series is still open
        client.sendall(b"".join(slices(first, image_series_index=1)[1:]) + mrd.CLOSE)
        answer = mrd.parse(bytes(received) + mrd.read_all(client))
    answers = answer.series(1000)
    for contrast, data in ((0, first), (1, second)):
        mine = [item for item in answers if struct.unpack_from("<H", item[0], 100)[0] == contrast]
        np.testing.assert_array_equal(pixels(mine), expected(enhancer, data, affine))
    assert len(answer.series(1001)) == 4


def test_what_is_no_magnitude_goes_back_untouched(address: tuple[str, int]) -> None:
    data, _ = scan((16, 18, 4))
    one = data[:, :, :1].T.copy()
    others = [
        *(mrd.image(one, b"<not xml", image_type=kind) for kind in (2, 3, 4, 6)),
        mrd.image(one.astype("<c8"), image_type=5),
        mrd.image(one.astype("<c16"), image_type=1),
        mrd.image(np.stack([one, one]), image_type=1),
        mrd.image(one[:, :0], matrix_size=(0, 18, 1)),
    ]
    xml = mrd.text(3, mrd.header_xml((16, 18)))
    between = [message for pair in zip(slices(data), others[:4], strict=True) for message in pair]
    answer = mrd.exchange(address, NAME, xml, *between, *others[4:], mrd.CLOSE)
    assert answer.texts == []
    back = [mrd.image(content, attributes, raw=raw) for raw, attributes, content in answer.images]
    assert back[: len(others)] == others
    assert len(answer.series(1000)) == 4


@pytest.mark.parametrize(
    ("messages", "options", "series"),
    [
        ((mrd.text(2, '{"parameters": {"steps": "2", "seed": 5}}'),), {"steps": 2, "seed": 5}, 1),
        ((mrd.text(2, "lfmri steps=2, seed=5"),), {"steps": 2, "seed": 5}, 1),
        ((mrd.configuration("lfmri steps=2 seed=5"),), {"steps": 2, "seed": 5}, 1),
        ((NAME, mrd.text(3, mrd.header_xml((16, 18), Steps=5, other=1))), {"steps": 5}, 1),
        ((mrd.text(2, '<gadgets seed="x"/>'), mrd.text(2, '["x"]'), mrd.text(5, "[" * 100_000)), {}, 1),
        (
            (
                mrd.text(3, mrd.header_xml((16, 18), steps=5)),
                mrd.text(5, '{"version": "1", "parameters": {"steps": 2}}'),
            ),
            {"steps": 2},
            1,
        ),
        ((mrd.text(5, '{"parameters": {"sendOriginal": "True", "thickAxis": "r"}}'),), {"thick_axis": "R"}, 2),
        ((mrd.text(5, '{"samples": 3, "uncertainty": true, "config": "x"}'),), {"samples": 3}, 2),
        (
            (mrd.text(5, '{"steps": 0, "samples": 0, "seed": -1, "voxelSize": "1.6x1.6x9"}'),),
            {"size": (1.6, 1.6, 9)},
            1,
        ),
    ],
)
def test_parameters_reach_the_core(
    address: tuple[str, int], enhancer: Enhancer, messages: tuple[bytes, ...], options: dict[str, Any], series: int
) -> None:
    options = dict(options)
    data, affine = scan((16, 18, 4), options.pop("size", (1.6, 1.6, 5.0)))
    answer = mrd.exchange(address, mrd.text(3, mrd.header_xml((16, 18))), *messages, *slices(data), mrd.CLOSE)
    # The test's bundle has no calibration, which several samples are told.
    assert ["no calibration" in text for text in answer.texts] == [True] * (options.get("samples", 1) > 1)
    assert len(answer.images) == 4 * series
    np.testing.assert_array_equal(pixels(answer.series(1000)), expected(enhancer, data, affine, **options))
    if b"sendOriginal" in messages[-1]:
        np.testing.assert_array_equal(pixels(answer.series(0)), data.T)
        assert [item[0] for item in answer.series(0)] == [raw_of(message) for message in slices(data)]
    if b"uncertainty" in messages[-1]:
        std = enhancer.enhance(data.astype(np.float32), affine, grid="input", **options).std
        assert std is not None
        np.testing.assert_array_equal(pixels(answer.series(2000)), std.T)
        assert b"the site's text, standard deviation" in answer.series(2000)[0][1]


@pytest.mark.parametrize(
    "value",
    [
        '{"steps": "many"}',
        '{"seed": 1.5}',
        '{"sendOriginal": 7}',
        '{"thickAxis": "up"}',
        '{"voxelSize": "5"}',
        '{"uncertainty": true}',
        '{"steps": 100000}',
        '{"seed": -2}',
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(address: tuple[str, int], value: str) -> None:
    data, _ = scan((16, 18, 4))
    xml = mrd.text(3, mrd.header_xml((16, 18)))
    answer = mrd.exchange(address, NAME, xml, mrd.text(5, value), *slices(data), mrd.CLOSE)
    assert answer.closed
    assert answer.images == []
    assert next(iter(json.loads(value))) in str(answer.error)


DOCTYPE = mrd.header_xml((18, 22)).replace("<ismrmrdHeader", "<!DOCTYPE a [<!ENTITY b 'c'>]><ismrmrdHeader")
SWAPPED = mrd.header_xml((18, 22)).replace("28.8", "A").replace("35.2", "28.8").replace("A", "35.2")


@pytest.mark.parametrize(
    ("xml", "fields", "said"),
    [
        (mrd.header_xml((18, 22)), {"field_of_view": (35.2, 28.8, 5.0)}, ()),
        (SWAPPED, {"field_of_view": (35.2, 28.8, 5.0)}, ("swapped",)),
        (mrd.header_xml((18, 22)), {"field_of_view": (50.0, 60.0, 5.0)}, ("the first was taken",)),
        ("Dummy XML header", {}, ("own field of view",)),
        (DOCTYPE, {}, ("own field of view",)),
        (mrd.header_xml((36, 44)), {"field_of_view": (35.2, 28.8, 5.0)}, ("swapped", "own field of view")),
        (mrd.header_xml((18, 22)), {"read_dir": (0.0, 0.0, 0.0)}, ("right angles",)),
        (mrd.header_xml((18, 22)), {"position": (0.0, 0.0, float("nan"))}, ("slice index", "distance of 5 mm")),
    ],
)
def test_voxel_sizes_are_found_and_every_guess_is_said(
    address: tuple[str, int], enhancer: Enhancer, xml: str, fields: dict[str, Any], said: tuple[str, ...]
) -> None:
    data, affine = scan((18, 22, 4))
    messages = slices(data, **fields)
    answer = mrd.exchange(address, NAME, mrd.text(3, xml), *messages, mrd.CLOSE)
    assert len(answer.texts) == len(said)
    assert all(line.startswith("WRN") and part in line for line, part in zip(answer.texts, said, strict=True))
    assert [masked(item[0]) for item in answer.images] == [masked(raw_of(message)) for message in messages]
    np.testing.assert_array_equal(pixels(answer.images), expected(enhancer, data, affine))


@pytest.mark.parametrize(
    ("xml", "view", "says"),
    [
        ("", (20.0, 33.0, 5.0), "no XML header fits"),
        (mrd.header_xml((18, 22), (1.5, 2.5, 5.0)), (30.0, 30.0, 5.0), "agree"),
        (mrd.header_xml((18, 22), (150.0, 150.0, 5.0)), (18.0, 22.0, 5.0), "0.05 to 50.0 mm"),
    ],
)
def test_a_voxel_size_that_cannot_be_had_is_asked_for(
    address: tuple[str, int], enhancer: Enhancer, xml: str, view: tuple[float, ...], says: str
) -> None:
    data, affine = scan((18, 22, 4))
    messages = (NAME, mrd.text(3, xml), *slices(data, field_of_view=view), mrd.CLOSE)
    answer = mrd.exchange(address, *messages)
    assert answer.images == []
    assert says in str(answer.error)
    assert "voxelSize" in str(answer.error)
    answer = mrd.exchange(address, mrd.text(5, '{"voxelSize": "1.6 1.6 5"}'), *messages)
    assert answer.texts == []
    np.testing.assert_array_equal(pixels(answer.images), expected(enhancer, data, affine))


def test_localisers_single_slices_and_enhanced_series_go_back_with_a_reason(
    address: tuple[str, int], recorder: Recorder
) -> None:
    data, _ = scan((16, 18, 4))
    xml = mrd.text(3, mrd.header_xml((16, 18)))
    turned = slices(data, read_dir=(0.0, 1.0, 0.0), phase_dir=(0.0, 0.0, 1.0))
    already = slices(data, image_series_index=2)
    already = [
        mrd.image(
            data[:, :, k].T[None],
            b"<ismrmrdMeta><meta><name>ImageProcessingHistory</name><value>LFMRI</value></meta></ismrmrdMeta>",
            image_series_index=2,
        )
        for k in range(4)
    ]
    single = slices(data, image_series_index=1)[:1]
    messages = [*slices(data), *turned, *single, *already]
    answer = mrd.exchange(address, NAME, xml, *messages, mrd.CLOSE)
    assert sorted(mrd.image(c, a, raw=r) for r, a, c in answer.images) == sorted(messages)
    for line, part in zip(answer.texts, ("localiser", "too small", "already"), strict=True):
        assert line.startswith("WRN")
        assert part in line
    assert [e["reason"] for e in recorder.of("passed-by")][-1] == "it is enhanced already"


def test_several_images_of_one_slice_are_refused(address: tuple[str, int]) -> None:
    data, _ = scan((16, 18, 4))
    answer = mrd.exchange(address, mrd.text(3, mrd.header_xml((16, 18))), *slices(data), slices(data)[2], mrd.CLOSE)
    assert answer.images == []
    assert "apart" in str(answer.error)


def test_raw_data_is_skipped_and_an_empty_session_is_none(address: tuple[str, int]) -> None:
    acquisition = ismrmrd.Acquisition.from_array(np.ones((3, 5), "<c8"), trajectory=np.ones((5, 2), "<f4"))
    acquisition.available_channels = 99  # only the active ones are sent
    waveform = ismrmrd.Waveform.from_array(np.ones((2, 7), "<u4"))
    data, _ = scan((16, 18, 4))
    raw = [struct.pack("<H", 1008) + acquisition.to_bytes(), struct.pack("<H", 1026) + waveform.to_bytes()]
    xml = mrd.text(3, mrd.header_xml((16, 18)))
    answer = mrd.exchange(address, NAME, xml, *raw, mrd.text(5, "a remark"), *slices(data), *raw, mrd.CLOSE)
    assert (len(answer.images), answer.texts, answer.closed) == (4, [], True)
    for nothing in ((), (NAME,), (mrd.CLOSE,)):
        with mrd.connect(address) as client:
            client.sendall(b"".join(nothing))
            client.shutdown(1)
            answer = mrd.parse(mrd.read_all(client))
        assert (answer.images, answer.texts, answer.closed) == ([], [], True)


def test_ten_clients_at_once_get_their_own(address: tuple[str, int], enhancer: Enhancer, recorder: Recorder) -> None:
    def visit(number: int) -> mrd.Answer:
        data, _ = scan((16, 18, 5), tilt=number / 4)
        seed = mrd.text(5, json.dumps({"seed": number}))
        return mrd.exchange(
            address, NAME, mrd.text(3, mrd.header_xml((16, 18))), seed, *slices(data, measurement_uid=number), mrd.CLOSE
        )

    before = len(recorder.of("sent"))
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(visit, range(10)))
    for number, answer in enumerate(answers):
        data, affine = scan((16, 18, 5), tilt=number / 4)
        assert answer.texts == []
        assert {struct.unpack_from("<I", item[0], 12)[0] for item in answer.images} == {number}
        np.testing.assert_array_equal(pixels(answer.images), expected(enhancer, data, affine, seed=number))
    sent = recorder.of("sent")[before:]
    assert len({event["source"] for event in sent}) == len(sent) == 10
    assert all(set(event["seconds"]) == {"receive", "assemble", "enhance", "encode", "send"} for event in sent)


ROOT = Path(__file__).parents[1]
OPENRECON = ROOT / "deploy" / "openrecon"


@pytest.mark.parametrize(("depth", "code"), [(6, 0), (3, 1)])
def test_the_example_takes_no_original_for_an_enhanced_scan(
    address: tuple[str, int], tmp_path: Path, depth: int, code: int
) -> None:
    """Three slices are too few for a head: they come back as they went."""
    data, affine = scan((16, 18, depth), dtype="<f4")
    nib.Nifti1Image(data, affine).to_filename(tmp_path / "scan.nii")
    script = ROOT / "docs" / "examples" / "mrd_send.py"
    server = ("--server", f"{address[0]}:{address[1]}")
    command = [sys.executable, str(script), "scan.nii", "enhanced.nii", *server]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "enhanced.nii").exists() == (code == 0)
    assert ("0 enhanced images came back; expected 3" in done.stderr) == (code == 1)


def test_a_client_is_turned_away_though_the_audit_log_cannot_be_written() -> None:
    class Full:
        def record(self, event: str, fields: dict[str, Any]) -> None:
            raise TryAgainLater("No space left on device")

    station: Any = SimpleNamespace(journal=Journal([Full()]))
    server = MrdServer(MrdSettings(), OutputSettings(), station)
    ours, theirs = socket.socketpair()
    with theirs:
        server._turn_away(ours)
        assert b"connected already" in theirs.recv(4096)
    server._turned_away.pop().close()


def test_openrecon_label_names_what_the_server_takes() -> None:
    label = json.loads((OPENRECON / "OpenReconLabel.json").read_text())
    assert set(label) == {"general", "reconstruction", "parameters"}
    assert set(label["general"]) == {"name", "version", "vendor", "information", "id", "regulatory_information"}
    assert label["general"]["version"] == version("lfmri")
    assert (label["reconstruction"]["emitter"], label["reconstruction"]["injector"]) == ("image", "image")
    assert label["reconstruction"]["port"] == 9002
    parameters = label["parameters"]
    kinds = {int: "int", bool: "boolean", str: "string"}
    defaults = {p["id"]: p["default"] for p in parameters}
    assert defaults == vars(Parameters())
    assert len(parameters) <= 14
    for parameter in parameters:
        assert re.fullmatch("[A-Za-z0-9]+", parameter["id"])
        assert parameter["label"]["en"]
        assert parameter["information"]["en"]
        if parameter["type"] == "choice":
            assert [value["id"] for value in parameter["values"]] == ["auto", "R", "A", "S", "none"]
        else:
            assert parameter["type"] == kinds[type(parameter["default"])]
        if parameter["type"] == "int":
            assert parameter["minimum"] <= parameter["default"] <= parameter["maximum"]
    assert "--target openrecon" in (OPENRECON / "package.sh").read_text()
