"""One DICOM file to a data set: sizes are capped first, and nothing that pydicom warns of or raises gets out."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from lfmri_runtime.errors import InputRefused, LfmriError

#: MAX_VOXELS of 16 bits, twice: an Enhanced MR file with its functional groups.
MAX_FILE_BYTES = 512 * 1024**2
#: The file meta information, which names the transfer syntax, is far shorter than this.
_META_BYTES = 1 << 16

_LOCK = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warning, logging and validating; one thread at a time: the settings are the process's."""
    logger = logging.getLogger("pydicom")
    with _LOCK, warnings.catch_warnings(), disable_value_validation():
        before, logger.propagate = logger.propagate, False
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.propagate = before


@contextmanager
def refusing(place: Path | str, trouble: str) -> Iterator[None]:
    """Run pydicom quietly on a file or its data set; whatever it meets is refused in our words, without its own.

    Raises:
        InputRefused: "PLACE: " and the block's own refusal, or "TROUBLE; export the scan again".
    """
    try:
        with quiet():
            yield
    except InputRefused as refusal:
        raise InputRefused(f"{place}: {refusal}") from None
    except (LfmriError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a broken value raises whatever its conversion raises
        raise InputRefused(f"{place}: {trouble}; export the scan again") from None


def read_dataset(path: Path, *, pixels: bool = True) -> Any | None:
    """Read one file of PS3.10; values are converted when they are first used, under `refusing`.

    Args:
        path: the file.
        pixels: whether to go on to the pixels; without them the data set ends before.

    Returns:
        pydicom's data set, or None if the file is no DICOM (no `DICM` after the preamble).

    Raises:
        InputRefused: the file cannot be read, is larger than MAX_FILE_BYTES, or is damaged.
    """
    content = _content(path)
    with refusing(path, "damaged or cut off; expected a whole DICOM file"):
        if DeflatedExplicitVRLittleEndian.encode() in content[:_META_BYTES]:
            raise InputRefused("deflated; expected DICOM that is not compressed: convert it with dcmconv +te")
        try:
            # From memory: a length that lies then reads to the end of the file instead of taking what it promises.
            return pydicom.dcmread(BytesIO(content), stop_before_pixels=not pixels)
        except InvalidDicomError:
            return None


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputRefused(f"{path}: not a regular file; expected a DICOM file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputRefused(f"{path}: over {MAX_FILE_BYTES} bytes; expected one image or one Enhanced MR volume")
        return path.read_bytes()
    except OSError as error:
        raise InputRefused(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from None
