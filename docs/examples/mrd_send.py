"""A console's side of MRD v1 in one file: send a NIfTI scan to `lfmri serve --mrd`, write what comes back.

    python docs/examples/mrd_send.py scan.nii.gz enhanced.nii.gz --server 127.0.0.1:9002 --steps 1

Written from the wire format alone, so that it can be carried over to a console's own language. Needs numpy and nibabel.
"""

import argparse
import json
import socket
import struct
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

CONFIG_TEXT, HEADER, TEXT, CLOSE, IMAGE = 2, 3, 5, 4, 1022
#: version, data_type, flags, measurement_uid, matrix_size[3], field_of_view[3], channels, position[3], read_dir[3],
#: phase_dir[3], slice_dir[3], patient_table_position[3], average, slice, contrast, phase, repetition, set,
#: acquisition_time_stamp, physiology_time_stamp[3], image_type, image_index, image_series_index, user_int[8],
#: user_float[8], attribute_string_len
IMAGE_HEADER = struct.Struct("<HHQI3H3fH3f3f3f3f3f6HI3I3H8i8fI")
FLOAT32, MAGNITUDE = 5, 1
#: image_series_index of what is sent; what the server enhanced comes back under another.
SERIES = 1
XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>2340000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace><matrixSize><x>{0}</x><y>{1}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{2}</x><y>{3}</y><z>{4}</z></fieldOfView_mm></encodedSpace>
    <reconSpace><matrixSize><x>{0}</x><y>{1}</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>{2}</x><y>{3}</y><z>{4}</z></fieldOfView_mm></reconSpace>
    <encodingLimits/><trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>"""


def text_message(number: int, text: str) -> bytes:
    """A message of text: id, length, NUL-terminated text."""
    content = text.encode() + b"\0"
    return struct.pack("<HI", number, len(content)) + content


def image_message(plane: np.ndarray, affine: np.ndarray, number: int) -> bytes:
    """One slice; axes x, y of the volume are the image's columns and rows."""
    columns, rows = plane.shape
    lps = np.diag([-1.0, -1.0, 1.0])  # MRD, like DICOM, counts towards left and back
    size = np.linalg.norm(affine[:3, :3], axis=0)
    directions = (lps @ affine[:3, :3] / size).T
    centre = lps @ (affine @ [(columns - 1) / 2, (rows - 1) / 2, number, 1])[:3]
    header = IMAGE_HEADER.pack(
        *(1, FLOAT32, 0, 0, columns, rows, 1, columns * size[0], rows * size[1], size[2], 1, *centre),
        *directions.ravel(),
        *(0.0, 0.0, 0.0, 0, number, 0, 0, 0, 0, 0, 0, 0, 0, MAGNITUDE, number + 1, SERIES, *[0] * 8, *[0.0] * 8, 0),
    )
    pixels = np.ascontiguousarray(plane.T, dtype="<f4").tobytes()
    return struct.pack("<H", IMAGE) + header + struct.pack("<Q", 0) + pixels


def receive(stream: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
    """Enhanced images until the server closes; a text that begins with ERR ends the program."""
    volume, count = np.zeros(shape, dtype=np.float32), 0
    while (number := struct.unpack("<H", stream.read(2))[0]) != CLOSE:
        if number == TEXT:
            (length,) = struct.unpack("<I", stream.read(4))
            text = stream.read(length).rstrip(b"\0").decode()
            if text.startswith("ERR"):
                raise SystemExit(text)
            print(text)
            continue
        fields = IMAGE_HEADER.unpack(stream.read(IMAGE_HEADER.size))
        (attributes,) = struct.unpack("<Q", stream.read(8))
        stream.read(attributes)
        columns, rows, index, series = fields[4], fields[5], fields[27], fields[38]
        pixels = np.frombuffer(stream.read(4 * columns * rows), dtype="<f4")
        if series != SERIES:  # or it was passed by, and comes back as it was
            volume[..., index] = pixels.reshape(rows, columns).T
            count += 1
    # A client that exits well without its images hides every failure.
    if count != shape[2]:
        raise SystemExit(f"{count} enhanced images came back; expected {shape[2]}")
    return volume


def send(scan: Path, enhanced: Path, *, address: tuple[str, int], steps: int) -> None:
    """One session: send a scan, write what comes back on the same grid."""
    image = nib.Nifti1Image.from_filename(scan)
    data, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine
    size = np.linalg.norm(affine[:3, :3], axis=0)
    with socket.create_connection(address, timeout=600) as connection, connection.makefile("rb") as stream:
        connection.sendall(text_message(CONFIG_TEXT, "lfmri"))
        extent = (data.shape[0] * size[0], data.shape[1] * size[1], size[2])
        connection.sendall(text_message(HEADER, XML.format(*data.shape[:2], *extent)))
        connection.sendall(text_message(TEXT, json.dumps({"parameters": {"steps": steps}})))
        for number in range(data.shape[2]):
            connection.sendall(image_message(data[..., number], affine, number))
        connection.sendall(struct.pack("<H", CLOSE))
        result = receive(stream, data.shape)
    nib.Nifti1Image(result, affine).to_filename(enhanced)


def main() -> None:
    """Read the options and send."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("enhanced", type=Path)
    parser.add_argument("--server", default="127.0.0.1:9002")
    parser.add_argument("--steps", type=int, default=1)
    options = parser.parse_args()
    address, _, port = options.server.rpartition(":")
    send(options.scan, options.enhanced, address=(address, int(port)), steps=options.steps)


if __name__ == "__main__":
    main()
