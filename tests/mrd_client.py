"""An MRD v1 client written from the wire facts, apart from the server's own code."""

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: The image header as the facts give it; its 39 parts up to attribute_string_len make 198 bytes.
HEADER = "<HHQI3H3fH3f3f3f3f3f6HI3I3H8i8fI"
DTYPES = dict(zip(range(1, 9), ("<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16"), strict=True))
CLOSE = struct.pack("<H", 4)
XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><reconSpace>
<matrixSize><x>{0}</x><y>{1}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{2}</x><y>{3}</y><z>{4}</z></fieldOfView_mm></reconSpace></encoding>
<userParameters>{5}</userParameters></ismrmrdHeader>"""


def text(number: int, content: str) -> bytes:
    """A configuration text (2), header XML (3) or text (5)."""
    raw = content.encode() + b"\0"
    return struct.pack("<HI", number, len(raw)) + raw


def configuration(name: str) -> bytes:
    return struct.pack("<H1024s", 1, name.encode())


def header_xml(matrix: tuple[int, int], size: tuple[float, float, float] = (1.6, 1.6, 5.0), **longs: int) -> str:
    """A header whose reconSpace gives these voxels; `longs` become user parameters."""
    user = "".join(
        f"<userParameterLong><name>{name}</name><value>{value}</value></userParameterLong>"
        for name, value in longs.items()
    )
    return XML.format(*matrix, matrix[0] * size[0], matrix[1] * size[1], size[2], user)


def header(**changes: Any) -> bytes:
    """An axial 2-D image's header; every field that is not given has a value of its own, so that a loss shows."""
    f: dict[str, Any] = {
        "version": 1,
        "data_type": 1,
        "flags": 0x8421_0000_0001_0042,
        "measurement_uid": 77,
        "matrix_size": (8, 6, 1),
        "field_of_view": (12.8, 9.6, 5.0),
        "channels": 1,
        "position": (1.5, -2.5, 30.0),
        "read_dir": (1.0, 0.0, 0.0),
        "phase_dir": (0.0, 1.0, 0.0),
        "slice_dir": (0.0, 0.0, 1.0),
        "patient_table_position": (0.25, 0.5, -1200.0),
        "index": (1, 0, 2, 3, 4, 5),  # average, slice, contrast, phase, repetition, set
        "acquisition_time_stamp": 123456789,
        "physiology_time_stamp": (7, 8, 9),
        "image_type": 1,
        "image_index": 1,
        "image_series_index": 0,
        "user_int": tuple(range(-4, 4)),
        "user_float": tuple(i / 3 for i in range(8)),
        "attribute_string_len": 0,
    }
    assert not changes.keys() - f.keys()
    f.update(changes)
    flat = [x for value in f.values() for x in (value if isinstance(value, tuple) else (value,))]
    return struct.pack(HEADER, *flat)


def image(pixels: np.ndarray, attributes: bytes = b"", *, raw: bytes | None = None, **fields: Any) -> bytes:
    """An image message; pixels are (z, y, x) or (channels, z, y, x)."""
    if raw is None:
        kind = next(number for number, name in DTYPES.items() if np.dtype(name) == pixels.dtype)
        channels = pixels.shape[0] if pixels.ndim == 4 else 1
        sizes = {"matrix_size": pixels.shape[:-4:-1], "channels": channels, "data_type": kind}
        raw = header(**{**sizes, "attribute_string_len": len(attributes), **fields})
    return struct.pack("<H", 1022) + raw + struct.pack("<Q", len(attributes)) + attributes + pixels.tobytes()


@dataclass
class Answer:
    """What came back: images as (raw header, attributes, pixels), texts, and whether a close message ended it."""

    images: list[tuple[bytes, bytes, np.ndarray]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    closed: bool = False

    def series(self, index: int) -> list[tuple[bytes, bytes, np.ndarray]]:
        return [item for item in self.images if struct.unpack_from("<H", item[0], 128)[0] == index]

    @property
    def error(self) -> str | None:
        return next((line for line in self.texts if line.startswith("ERR")), None)


def parse(stream: bytes) -> Answer:
    """Take a whole stream apart; anything that is not MRD fails here."""
    answer, at = Answer(), 0
    while at < len(stream):
        assert not answer.closed, "bytes after the close message"
        number = struct.unpack_from("<H", stream, at)[0]
        at += 2
        if number == 4:
            answer.closed = True
        elif number == 5:
            length = struct.unpack_from("<I", stream, at)[0]
            raw = stream[at + 4 : at + 4 + length]
            assert len(raw) == length
            assert raw.endswith(b"\0")
            answer.texts.append(raw[:-1].decode())
            at += 4 + length
        else:
            assert number == 1022
            raw = stream[at : at + 198]
            fields = struct.unpack(HEADER, raw)
            length = struct.unpack_from("<Q", stream, at + 198)[0]
            at += 206
            attributes = stream[at : at + length]
            shape = (fields[10], *fields[6:3:-1])
            dtype = np.dtype(DTYPES[fields[1]])
            size = int(np.prod(shape)) * dtype.itemsize
            answer.images.append(
                (raw, attributes, np.frombuffer(stream, dtype, size // dtype.itemsize, at + length).reshape(shape))
            )
            at += length + size
    return answer


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=60)


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    while piece := client.recv(1 << 16):
        received += piece
    return bytes(received)


def exchange(address: tuple[str, int], *messages: bytes) -> Answer:
    """Send everything, then read everything."""
    with connect(address) as client:
        client.sendall(b"".join(messages))
        return parse(read_all(client))
