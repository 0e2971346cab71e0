"""What lies in a folder and is one item: an image file, a DICOM file, or a folder of DICOM files."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lfmri_runtime.volume import SUFFIXES

DICOM_SUFFIX = ".dcm"
#: Names under which senders write what is not whole yet.
UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", "~")
WORKING, DONE, FAILED = "working", "done", "failed"

#: Path below the item, size in bytes and time of the last change in ns, of everything in it.
Mark = tuple[tuple[str, int, int], ...]


def is_whole_name(name: str) -> bool:
    """Whether a name is neither hidden nor one of a file that is still written."""
    return not name.startswith(".") and not name.lower().endswith(UNFINISHED)


def items_in(folder: Path) -> Iterator[Path]:
    """The items of a folder, in no order; files of other kinds, hidden and unfinished ones are none.

    A link is an item, whatever it points to: it is refused by name rather than left lying.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_whole_name(entry.name) and entry.name not in (WORKING, DONE, FAILED) and _is_item(entry):
                yield folder / entry.name


def _is_item(entry: "os.DirEntry[str]") -> bool:
    return (
        entry.is_symlink()
        or entry.is_dir(follow_symlinks=False)
        or entry.name.lower().endswith((*SUFFIXES, DICOM_SUFFIX))
    )


def refusal(item: Path) -> str | None:
    """Why an item must not be opened: a link could lead anywhere, a pipe could wait for ever."""
    for path in (item, *_below(item)):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return "the scan is a link or holds one, which may lead anywhere; expected the files themselves: copy them"
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return "the scan is or holds something that is no file; expected regular files"
    return None


def mark_of(item: Path) -> Mark | None:
    """Sizes and times of an item and all that is in it; None where it changes meanwhile, or cannot be read."""
    with suppress(OSError):
        return _mark(item)
    return None


def _mark(item: Path) -> Mark:
    found = [(path, path.lstat()) for path in sorted((item, *_below(item)))]
    return tuple((str(path.relative_to(item)), state.st_size, state.st_mtime_ns) for path, state in found)


def _mark_or_reason(item: Path) -> Mark | str | None:
    """The mark; why there is none; None where it changes while it is looked at."""
    try:
        return _mark(item)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return str(error.strerror)


class Looks:
    """Finds what two looks in a row saw unchanged, which is taken for whole.

    Attributes:
        unreadable: why what two looks in a row could not read cannot be read; one reason an item, no name.
    """

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self._before: dict[Path, Mark | str | None] = {}

    def unchanged(self, folder: Path) -> list[tuple[Path, Mark]]:
        """Look once more; the oldest comes first.

        Raises:
            OSError: the folder cannot be read.
        """
        now = {item: _mark_or_reason(item) for item in items_in(folder)}
        same = [(item, found) for item, found in now.items() if self._before.get(item) == found]
        self._before = now
        self.unreadable = [found for _, found in same if isinstance(found, str)]
        whole = [(item, found) for item, found in same if isinstance(found, tuple)]
        return sorted(whole, key=lambda pair: (max(changed for _, _, changed in pair[1]), pair[0]))


def files_below(item: Path) -> list[Path]:
    """The item itself, or the files in a folder and its folders, hidden and unfinished ones left out, by name."""
    if not item.is_dir():
        return [item]
    return sorted(path for path in _below(item) if path.is_file() and is_whole_name(path.name))


def _below(item: Path) -> Iterator[Path]:
    if item.is_symlink() or not item.is_dir():
        return
    for folder, folders, files in os.walk(item, onerror=_raise):
        for name in (*folders, *files):
            yield Path(folder, name)


def _raise(error: OSError) -> None:
    raise error
