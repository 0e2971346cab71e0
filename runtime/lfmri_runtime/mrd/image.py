"""One MRD image: its header, kept to the bit, its attributes and its pixels.

Layout: ISMRMRD 1.4, ismrmrd.h (structures packed to 2 bytes), little-endian.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
#: Where the fields lie that an answer changes.
_DATA_TYPE_AT, _SERIES_AT, _ATTRIBUTE_LENGTH_AT = 2, 128, 194

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
        """The message's content as it came."""
        return self.header.raw, struct.pack("<Q", len(self.attributes)), self.attributes, self.pixels

    def answer(self, pixels: NDArray[Any], *, data_type: int, series: int, attributes: bytes) -> tuple[bytes, ...]:
        """The content with other pixels; of the header, data type, series and attribute length change, nothing else.

        Args:
            pixels: (z, y, x).
            data_type: key of DATA_TYPES.
            series: image_series_index.
            attributes: XML.
        """
        header = bytearray(self.header.raw)
        struct.pack_into("<H", header, _DATA_TYPE_AT, data_type)
        struct.pack_into("<H", header, _SERIES_AT, series)
        struct.pack_into("<I", header, _ATTRIBUTE_LENGTH_AT, len(attributes))
        content = pixels.astype(DATA_TYPES[data_type], copy=False).tobytes()
        return bytes(header), struct.pack("<Q", len(attributes)), attributes, content
