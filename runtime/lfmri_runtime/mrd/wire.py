"""MRD v1 on the wire, little-endian: messages read with every length capped, and written.

Layouts: ISMRMRD 1.4, ismrmrd.h (structures packed to 2 bytes) and waveform.h; MR Data Message Format of the MRD
documentation.
"""

import math
import struct
import time
from collections.abc import Iterable
from enum import IntEnum

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.mrd.channel import Channel
from lfmri_runtime.mrd.image import DATA_TYPES, HEADER, Image, ImageHeader


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

_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
#: Acquisition: 340 bytes; number_of_samples, active_channels, trajectory_dimensions.
_ACQUISITION_BYTES, _ACQUISITION_COUNTS = 340, struct.Struct("<34xH2xH136xH")
#: Waveform: 40 bytes, the only structure packed to 8; number_of_samples, channels.
_WAVEFORM_BYTES, _WAVEFORM_COUNTS = 40, struct.Struct("<28xHH")


def text_message(text: str) -> bytes:
    """A text for the client; its first letters (ERR, WRN, DBG) say how bad it is."""
    content = text.encode() + b"\0"
    return _U16.pack(Id.TEXT) + _U32.pack(len(content)) + content


def image_message(content: Iterable[bytes | bytearray]) -> tuple[bytes | bytearray, ...]:
    """An image for the client, in parts that are not copied together."""
    return _U16.pack(Id.IMAGE), *content


def close_message() -> bytes:
    """Nothing more comes."""
    return _U16.pack(Id.CLOSE)


def read_message(channel: Channel, *, idle: float, seconds: float) -> tuple[Id, str | Image | None]:
    """Read the next message.

    Args:
        channel: to read from.
        idle: longest wait for the message to begin.
        seconds: longest time from there for it to arrive whole.

    Returns:
        The id with a text, an image, or None for what holds nothing or was skipped.

    Raises:
        InputRefused: an unknown id or data type, a length above its cap, too slow, or an end within the message.
        EOFError: the client ended the stream without a close message.
        OSError: the connection broke.
    """
    first = channel.read_first(_U16.size, seconds=idle)
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
