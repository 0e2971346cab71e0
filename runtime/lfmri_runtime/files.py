"""Files that are either whole or not there.

Every output is written under a temporary name in the folder that it belongs to and renamed when it is complete, so
that a killed run, a full disk or an interrupt leaves no half file under the asked name.
"""

import errno
import glob
import gzip
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from lfmri_runtime.errors import LfmriError, TryAgainLater

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE_BYTES = 1 << 20
_GZIP_LEVEL = 6


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    The temporary name starts with a dot and ends in the whole asked name, so that every suffix is kept
    (`.5f3a90c1.tmp.scan.nii.gz`) and a watcher that skips hidden files never sees it. The block creates the file; it is
    flushed to the disk before it is renamed. An interrupt or any other exception removes it.

    Args:
        path: the file to write; an existing regular file is replaced, a link's target is replaced and the link kept.

    Yields:
        The temporary path, which does not exist yet.

    Raises:
        TryAgainLater: the disk or a quota is full, or the folder or the file cannot be written.
    """
    target = _target(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.tmp.{target.name}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise  # another file's trouble, met inside the block
        raise _explained(path, error) from error
    finally:
        with suppress(OSError):  # gone after the rename; never hides the first error
            temporary.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of runs that were killed while they wrote `path`.

    Args:
        path: an output that nobody else writes now.

    Raises:
        TryAgainLater: the folder cannot be written.
    """
    target = _target(path)
    try:
        for leftover in target.parent.glob(f".*.tmp.{glob.escape(target.name)}"):
            leftover.unlink()
    except OSError as error:
        raise _explained(path, error) from error


def check_writable(path: Path) -> None:
    """Make sure, before long work begins, that `path` can be written at its end.

    Missing parent folders are created, and an empty temporary file is made and removed beside `path`.

    Args:
        path: the file that will be written.

    Raises:
        TryAgainLater: the folder cannot be made or written, the disk is full, or `path` is not a regular file.
    """
    try:
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = target.with_name(f".{secrets.token_hex(4)}.tmp.{target.name}")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _explained(path, error) from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces.

    Args:
        path: the file to read.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with its line ends as they are, whole or not at all.

    Args:
        path: the file to write.
        text: its content.

    Raises:
        TryAgainLater: as `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON with a newline at its end, whole or not at all; keys keep their order.

    Args:
        path: the file to write.
        content: what `json.dumps` takes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
        TryAgainLater: as `atomic_write`.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def open_binary(path: Path, *, unpack: bool) -> Iterator[BinaryIO]:
    """Open a file for reading its bytes, through gzip where `unpack` is set.

    Args:
        path: the file to read.
        unpack: whether the file is compressed.

    Yields:
        A stream to read; a damaged file shows while reading, as `EOFError`, `gzip.BadGzipFile` or `zlib.error`.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as raw:
        if not unpack:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield cast(BinaryIO, stream)


@contextmanager
def create_binary(path: Path, *, pack: bool) -> Iterator[BinaryIO]:
    """Create a file to write bytes to, through gzip where `pack` is set; the same bytes in give the same bytes out.

    Args:
        path: the file to write.
        pack: whether to compress; gzip's header then carries neither a time nor a name.

    Yields:
        A stream to write.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as raw:
        if not pack:
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0) as stream:
            yield cast(BinaryIO, stream)


def read_up_to(stream: BinaryIO, count: int) -> bytearray:
    """Read `count` bytes, fewer only where the stream ends; memory grows with what is really there.

    Args:
        stream: an open stream.
        count: bytes to read, 0 or more.
    """
    read = bytearray()
    while len(read) < count and (piece := stream.read(min(_PIECE_BYTES, count - len(read)))):
        read += piece
    return read


def _target(path: Path) -> Path:
    """Follow links, and refuse what a rename must not replace: a folder, a device, a pipe."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise TryAgainLater(f"{path}: not writable (it is a folder); give the name of a file")
    if target.exists() and not target.is_file():
        raise TryAgainLater(f"{path}: not writable (it is not a regular file); give the name of a regular file")
    return target


def _flush(path: Path) -> None:
    """Wait until the file's bytes are on the disk, so that the rename cannot overtake them."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _explained(path: Path, error: OSError) -> LfmriError:
    """Turn an error of the operating system into one line that says what to do."""
    reason = os.strerror(error.errno) if error.errno else "unknown error"
    if error.errno in _FULL:
        return TryAgainLater(
            f"{path}: disk full or file size limit reached ({reason}); nothing was left there: "
            "free some space or write elsewhere, then run again"
        )
    return TryAgainLater(
        f"{path}: not writable ({reason}); check that its folder exists and may be written, or write elsewhere"
    )
