"""A folder that is ours: items are claimed by renaming them, and end in done/ or failed/ as they are.

At most one item is claimed at a time. Whatever kills the process, an item lies in exactly one of IN, IN/working,
IN/done and IN/failed, and what lies in IN/working at start is taken up again.
"""

import fcntl
import glob
import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lfmri_runtime.errors import TryAgainLater, UsageError
from lfmri_runtime.files import write_text
from lfmri_runtime.folder.items import DONE, FAILED, WORKING, Mark, is_whole_name, mark_of
from lfmri_runtime.folder.names import free_name

LOCK = ".lfmri.lock"
#: Beside a claimed item, hidden: how many processes ended while they worked on it, as its sizes and times are.
INTERRUPTIONS = ".{}.{}.interruptions"


class Spool:
    """Claims items of one folder.

    Args:
        folder: IN; its three subfolders are made.
        output: OUT, which no other watcher may write to; it is made.
        layout: of OUT, by name.

    Raises:
        UsageError: OUT is IN or lies in it.
        TryAgainLater: another watcher holds one of them, or they cannot be written.
    """

    def __init__(self, folder: Path, output: Path, *, layout: str) -> None:
        if output.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{output} lies in the watched {folder}; expected an output folder outside of it")
        self.folder = folder
        self._working, self._done, self._failed = (folder / name for name in (WORKING, DONE, FAILED))
        self._locks = ExitStack()
        with ExitStack() as undo:
            undo.enter_context(self._locks)
            try:
                for place in (self._working, self._done, self._failed, output):
                    place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TryAgainLater(f"{place}: {error.strerror}; expected a folder that can be written") from None
            for place in (folder, output):
                lock(place, self._locks)
            self._let_go(f"{layout} {output.resolve()}")
            undo.pop_all()

    def close(self) -> None:
        """Let another watcher have the folders."""
        self._locks.close()

    def _let_go(self, place: str) -> None:
        """Let what was claimed for results elsewhere wait in IN again: here its name may be another's."""
        note = self.folder / LOCK
        if note.read_bytes() != os.fsencode(place):
            for claim in self.claimed():
                self.give_back(claim)
            note.write_bytes(os.fsencode(place))

    def claimed(self) -> list[Path]:
        """What lies in working/: at most one item, left by a run that was killed."""
        return sorted(path for path in self._working.iterdir() if is_whole_name(path.name))

    def claim(self, item: Path, mark: Mark, taken: Callable[[str], bool]) -> Path | None:
        """Move an item into working/; None where it has changed or gone.

        Args:
            item: in IN.
            mark: that it must still have.
            taken: whether a name's outputs are there already.
        """
        if mark_of(item) != mark:
            return None
        claim = self._working / free_name(item.name, taken)
        try:
            return item.rename(claim)
        except FileNotFoundError:
            return None

    def interruptions(self, claim: Path) -> Path:
        """Where is noted how many processes ended while they worked on an item; it stays when that is given back.

        Another item that comes under the same name has marks of its own.
        """
        state = hashlib.sha256(repr(mark_of(claim)).encode(errors="surrogateescape")).hexdigest()[:8]
        return self._working / INTERRUPTIONS.format(claim.name, state)

    def _forget(self, claim: Path) -> None:
        for marks in self._working.glob(INTERRUPTIONS.format(glob.escape(claim.name), "*")):
            marks.unlink(missing_ok=True)

    def give_back(self, claim: Path) -> None:
        """Move a claimed item back into IN."""
        claim.rename(_free(self.folder, claim.name))

    def finish(self, claim: Path) -> None:
        """Move a claimed item into done/.

        Raises:
            TryAgainLater: done/ was cleared away and cannot be made again.
        """
        self._forget(claim)
        claim.rename(_place(self._done, claim.name))

    def fail(self, claim: Path, reason: str) -> None:
        """Move a claimed item into failed/, with NAME.reason.txt beside it.

        Raises:
            TryAgainLater: the reason cannot be written; names no file, since a name may be a patient's.
        """
        target = _place(self._failed, claim.name)
        try:
            write_text(target.with_name(f"{target.name}.reason.txt"), reason + "\n")
        except TryAgainLater:
            raise _unwritable(self._failed) from None
        self._forget(claim)
        claim.rename(target)


def lock(folder: Path, locks: ExitStack) -> None:
    """Hold a folder until `locks` is closed or the process ends, however it ends.

    Raises:
        TryAgainLater: another process holds it, or it cannot be locked.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        locks.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TryAgainLater(f"another watcher holds {folder}; expected one for each input and output folder") from None
    except OSError as error:
        raise TryAgainLater(f"{folder / LOCK}: {error.strerror}; expected a folder that can be locked") from None


def _place(folder: Path, name: str) -> Path:
    """A free name in done/ or failed/, which may be cleared away while the watcher runs.

    Raises:
        TryAgainLater: the folder cannot be made again.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        raise _unwritable(folder) from None
    return _free(folder, name)


def _unwritable(folder: Path) -> TryAgainLater:
    return TryAgainLater(f"{folder} cannot be written; expected a folder with room and rights for what ends there")


def _free(folder: Path, name: str) -> Path:
    return folder / free_name(name, lambda candidate: os.path.lexists(folder / candidate))
