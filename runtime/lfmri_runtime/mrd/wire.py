"""MRD v1 on the wire, little-endian: message ids, the image header, messages read with every length capped.

Layouts: ISMRMRD 1.4, ismrmrd.h (structures packed to 2 bytes) and waveform.h; MR Data Message Format of the MRD
documentation.
"""

import math
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.mrd.channel import Channel


class Id(IntEnum):
    """Message ids that are understood; the length of any other is unknown."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


#: A configuration's name fills this field, padded with NUL.
NAME_BYTES = 1024
#: Longest configuration, header or text; real ones have some ten kilobytes.
TEXT_BYTES = 1 << 20
#: Longest attributes of one image; a converter's copy of a whole DICOM header fits.
ATTRIBUTE_BYTES = 4 << 20
#: Most pixels of one image, and largest raw readout that is skipped, bytes: 512 x 512 x 256 voxels in float32.
DATA_BYTES = 256 << 20

DATA_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u2"),
    2: np.dtype("<i2"),
    3: np.dtype("<u4"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<c8"),
    8: np.dtype("<c16"),
}
FLOAT32 = 5
#: Image types that hold a magnitude; writers that leave the type open send 0.
MAGNITUDE = (0, 1)

HEADER = struct.Struct("<HHQI3H3fH3f3f3f3f3f6HI3I3H8i8fI")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
#: Where the fields lie that an answer changes.
_DATA_TYPE_AT, _SERIES_AT, _ATTRIBUTE_LENGTH_AT = 2, 128, 194
#: Acquisition: 340 bytes; number_of_samples, active_channels, trajectory_dimensions.
_ACQUISITION_BYTES, _ACQUISITION_COUNTS = 340, struct.Struct("<34xH2xH136xH")
#: Waveform: 40 bytes, the only structure packed to 8; number_of_samples, channels.
_WAVEFORM_BYTES, _WAVEFORM_COUNTS = 40, struct.Struct("<28xHH")

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class ImageHeader:
    """The fields of an image header that are looked at; the bytes themselves are kept for the answer.

    Attributes:
        raw: all 198 bytes.
        data_type: key of DATA_TYPES.
        matrix_size: pixels along x, y, z.
        field_of_view: mm along x, y, z; some writers swap x and y.
        channels: of the pixels.
        position: mm, LPS; the image's centre by the standard, its first corner from some writers.
        read_dir, phase_dir, slice_dir: LPS directions of x, y, z.
        frame: average, contrast, phase, repetition, set.
        slice: its index.
        image_type: 1 magnitude, 2 phase, 3 real, 4 imaginary, 5 complex, 6 colour; 0 unknown.
        series: image_series_index.
    """

    raw: bytes
    data_type: int
    matrix_size: tuple[int, int, int]
    field_of_view: Vector
    channels: int
    position: Vector
    read_dir: Vector
    phase_dir: Vector
    slice_dir: Vector
    frame: tuple[int, int, int, int, int]
    slice: int
    image_type: int
    series: int

    @classmethod
    def parse(cls, raw: bytes) -> "ImageHeader":
        """Take a header apart.

        Args:
            raw: 198 bytes.
        """
        f = HEADER.unpack(raw)
        average, slice_, contrast, phase, repetition, set_ = f[26:32]
        return cls(
            raw=raw,
            data_type=f[1],
            matrix_size=f[4:7],
            field_of_view=f[7:10],
            channels=f[10],
            position=f[11:14],
            read_dir=f[14:17],
            phase_dir=f[17:20],
            slice_dir=f[20:23],
            frame=(average, contrast, phase, repetition, set_),
            slice=slice_,
            image_type=f[36],
            series=f[38],
        )


@dataclass(frozen=True)
class Image:
    """One image message.

    Attributes:
        header: as it came.
        attributes: XML, as it came.
        pixels: (channels, z, y, x) in the header's data type, as it came.
    """

    header: ImageHeader
    attributes: bytes
    pixels: bytes | bytearray

    @property
    def array(self) -> NDArray[Any]:
        """The pixels, (z, y, x), of an image of one channel."""
        return np.frombuffer(self.pixels, DATA_TYPES[self.header.data_type]).reshape(self.header.matrix_size[::-1])

    def parts(self) -> tuple[bytes | bytearray, ...]:
        """The message as it came."""
        return (
            _U16.pack(Id.IMAGE),
            self.header.raw,
            _U64.pack(len(self.attributes)),
            self.attributes,
            self.pixels,
        )

    def answer(self, pixels: NDArray[Any], *, data_type: int, series: int, attributes: bytes) -> tuple[bytes, ...]:
        """A message with other pixels; the header's data type, series and attribute length change, nothing else.

        Args:
            pixels: (z, y, x).
            data_type: key of DATA_TYPES.
            series: image_series_index.
            attributes: XML.
        """
        header = bytearray(self.header.raw)
        _U16.pack_into(header, _DATA_TYPE_AT, data_type)
        _U16.pack_into(header, _SERIES_AT, series)
        _U32.pack_into(header, _ATTRIBUTE_LENGTH_AT, len(attributes))
        content = pixels.astype(DATA_TYPES[data_type], copy=False).tobytes()
        return _U16.pack(Id.IMAGE), bytes(header), _U64.pack(len(attributes)), attributes, content


def text_message(text: str) -> bytes:
    """A text for the client; its first letters (ERR, WRN, DBG) say how bad it is."""
    content = text.encode() + b"\0"
    return _U16.pack(Id.TEXT) + _U32.pack(len(content)) + content


def close_message() -> bytes:
    """Nothing more comes."""
    return _U16.pack(Id.CLOSE)


def read_message(channel: Channel, *, seconds: float) -> tuple[Id, str | Image | None]:
    """Read the next message.

    Args:
        channel: to read from.
        seconds: longest wait for the message to begin, and from there for it to arrive whole.

    Returns:
        The id with a text, an image, or None for what holds nothing or was skipped.

    Raises:
        InputRefused: an unknown id or data type, a length above its cap, too slow, or an end within the message.
        EOFError: the client ended the stream without a close message.
        OSError: the connection broke.
    """
    first = channel.read_first(_U16.size, seconds=seconds)
    if not first:
        raise EOFError
    deadline = time.monotonic() + seconds
    number = _U16.unpack(first)[0]
    if number not in Id.__members__.values():
        raise InputRefused(
            f"message id {number} is not known; expected {', '.join(str(int(i)) for i in Id)}: speak MRD 1"
        )
    message = Id(number)
    content: str | Image | None = None
    if message is Id.CONFIG_FILE:
        content = _text(channel.read(NAME_BYTES, deadline=deadline))
    elif message in (Id.CONFIG_TEXT, Id.HEADER, Id.TEXT):
        length = _U32.unpack(channel.read(_U32.size, deadline=deadline))[0]
        content = _text(channel.read(_capped(length, TEXT_BYTES, "a text"), deadline=deadline))
    elif message is Id.IMAGE:
        content = _read_image(channel, deadline)
    elif message is Id.ACQUISITION:
        samples, channels, dimensions = _ACQUISITION_COUNTS.unpack_from(
            channel.read(_ACQUISITION_BYTES, deadline=deadline)
        )
        size = samples * (channels * 8 + dimensions * 4)  # complex64 samples, float32 trajectory
        channel.discard(_capped(size, DATA_BYTES, "an acquisition"), deadline=deadline)
    elif message is Id.WAVEFORM:
        samples, channels = _WAVEFORM_COUNTS.unpack_from(channel.read(_WAVEFORM_BYTES, deadline=deadline))
        channel.discard(_capped(samples * channels * 4, DATA_BYTES, "a waveform"), deadline=deadline)
    return message, content


def _read_image(channel: Channel, deadline: float) -> Image:
    header = ImageHeader.parse(bytes(channel.read(HEADER.size, deadline=deadline)))
    if header.data_type not in DATA_TYPES:
        raise InputRefused(
            f"an image has data type {header.data_type}; expected 1 to {max(DATA_TYPES)}: check its header"
        )
    size = math.prod((*header.matrix_size, header.channels, DATA_TYPES[header.data_type].itemsize))
    _capped(size, DATA_BYTES, "an image's pixels")
    length = _U64.unpack(channel.read(_U64.size, deadline=deadline))[0]
    attributes = channel.read(_capped(length, ATTRIBUTE_BYTES, "an image's attributes"), deadline=deadline)
    return Image(header, bytes(attributes), channel.read(size, deadline=deadline))


def _text(content: bytearray) -> str:
    return content.partition(b"\0")[0].decode(errors="replace")


def _capped(length: int, cap: int, what: str) -> int:
    if length > cap:
        raise InputRefused(f"{what} of {length} bytes is announced; expected at most {cap}: check the sender")
    return length
