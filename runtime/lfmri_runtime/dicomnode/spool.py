"""The spool: a series is one folder, and where that folder lies is the series' state.

    incoming/SERIES/          instances arrive; every one is durable before it is acknowledged
    working/SERIES/           complete by quiet time; being enhanced
    outbox/NUMBER-SERIES/     enhanced; to/DESTINATION/ holds what that destination has not acknowledged
    done/SERIES/              acknowledged by every destination
    passed-by/SERIES/         not for enhancing; reason.txt says why
    failed/SERIES/            could not be enhanced; reason.txt says why
    quarantine/DESTINATION/NUMBER-SERIES/    objects that a destination kept refusing, with reason.txt
                                             and job.json; moved to outbox/NUMBER-SERIES/to/DESTINATION they leave

SERIES and the files' names are hashes of UIDs: a UID from outside is no path, and neither names a patient. Each change
of state is one rename, so that after a crash a series is found in exactly one state.
"""

import filecmp
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfmri_runtime.console.disk import shortage
from lfmri_runtime.dicomnode.disk import discard, lock, move, settle
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.files import write_json, write_text

#: States in which a series rests: instances that come late are joined with those that lie here.
RESTING = ("done", "passed-by", "failed")
#: Series are removed from done and passed-by after a day: long enough to be looked at, and bounded. The sender keeps
#: the originals. What failed stays until a person has removed it.
EXPIRING = ("done", "passed-by")
KEEP_SECONDS = 24 * 3600
REASON = "reason.txt"
#: What the journal will say of a job, since its folder is named by a hash.
RECORD = "job.json"
#: How many processes ended while they worked on the series.
INTERRUPTIONS = "interruptions"


def key(uid: str) -> str:
    """The name by which the spool knows a UID."""
    return hashlib.sha256(uid.encode(errors="surrogateescape")).hexdigest()[:32]


@dataclass
class Arrival:
    """When the instances of a series came, by the monotonic clock."""

    first: float
    last: float


class Spool:
    """One node's spool; taken up where the last process left it.

    Args:
        root: its folder; created.
        destinations: names of the folders below to/.
        least_free_mib: below this what rests is removed before its day is over.

    Raises:
        TryAgainLater: another process uses it, or it cannot be written.
    """

    def __init__(self, root: Path, *, destinations: Sequence[str], least_free_mib: int) -> None:
        self.root = root
        self._destinations = tuple(destinations)
        self._least_free_mib = least_free_mib
        self._mutex = threading.Lock()
        self._arrivals: dict[str, Arrival] = {}
        try:
            for name in ("incoming", "working", "outbox", "quarantine", "temporary", *RESTING):
                (root / name).mkdir(parents=True, exist_ok=True)
            self._handle = lock(root / "lock")
            self._take_up()
        except OSError as error:
            raise TryAgainLater(f"{root}: {error.strerror}; expected a spool that can be written") from None

    def close(self) -> None:
        """Leave the spool to another process."""
        os.close(self._handle)

    def begin(self) -> None:
        """Begin every series' quiet time anew: who was sending could not send while the node was down."""
        now = time.monotonic()
        with self._mutex:
            self._arrivals = {path.name: Arrival(now, now) for path in (self.root / "incoming").iterdir()}

    # ---- receiving

    def temporary(self) -> Path:
        """A new name on the spool's disk for what is being written; emptied at every start."""
        return self.root / "temporary" / secrets.token_hex(8)

    def accept(self, path: Path, *, series: str, instance: str) -> None:
        """Take in a flushed temporary file; when this returns, the instance outlives a crash.

        The same instance sent again replaces itself.

        Args:
            path: from `temporary`.
            series: key of its series.
            instance: key of its SOP instance.
        """
        folder = self.root / "incoming" / series
        with self._mutex:
            if not folder.exists():
                folder.mkdir()
                settle(folder.parent)
            path.replace(folder / f"{instance}.dcm")
            settle(folder)
            now = time.monotonic()
            self._arrivals.setdefault(series, Arrival(now, now)).last = now

    # ---- working

    def quiet(self, seconds: float) -> list[str]:
        """Series for which nothing came for so long, the longest quiet first.

        One that was sent again while it waits in working is left until that has gone on.
        """
        now = time.monotonic()
        with self._mutex:
            arrivals = sorted(self._arrivals.items(), key=lambda item: item[1].last)
        quiet = [series for series, arrival in arrivals if now - arrival.last >= seconds]
        return [series for series in quiet if not (self.root / "working" / series).exists()]

    def claim(self, series: str) -> float | None:
        """Move a quiet series to working; returns the seconds from its first instance to its last.

        None where somebody has removed it.
        """
        source = self.root / "incoming" / series
        with self._mutex:
            if not source.exists():
                del self._arrivals[series]
                return None
            move(source, self.root / "working" / series)
            arrival = self._arrivals.pop(series)
        return arrival.last - arrival.first

    def working(self) -> list[Path]:
        """Series that are being enhanced, or were when the last process ended."""
        return sorted((self.root / "working").iterdir())

    def repeated(self, folder: Path) -> bool:
        """Whether a working series is only a part, unchanged, of one that has been enhanced.

        A sender whose acknowledgement was lost sends that instance again. All of a series sent again is no such part:
        whoever does that wants it enhanced again, and the objects are the same.
        """
        came = list(folder.glob("*.dcm"))
        with self._mutex:
            return any(
                len(came) < len(list(before.glob("*.dcm"))) and all(_same(path, before / path.name) for path in came)
                for before in self._before(folder.name, states=("done",))
            )

    def instances(self, folder: Path) -> list[Path]:
        """A working series' instances, joined with those of it that came before."""
        with self._mutex:
            for before in self._before(folder.name, states=RESTING):
                for path in before.glob("*.dcm"):
                    if not (folder / path.name).exists():
                        (folder / path.name).hardlink_to(path)
        return sorted(folder.glob("*.dcm"))

    def drop(self, folder: Path) -> None:
        """Forget a working series."""
        discard(folder, self.temporary())

    def commit(self, folder: Path, objects: Sequence[Path], record: dict[str, Any]) -> None:
        """Hand an enhanced series to every destination, all at once.

        Args:
            folder: in working.
            objects: flushed files on the spool's disk, in the order in which they are to leave.
            record: for the journal, when they have been sent.
        """
        shutil.rmtree(folder / "to", ignore_errors=True)
        write_json(folder / RECORD, record)
        for name in self._destinations:
            place = folder / "to" / name
            place.mkdir(parents=True)
            for number, path in enumerate(objects, start=1):
                (place / f"{number:05d}.dcm").hardlink_to(path)
            settle(place)
        settle(folder / "to")
        settle(folder)
        with self._mutex:
            jobs = [int(path.name.split("-")[0]) for path in (self.root / "outbox").iterdir()]
            move(folder, self.root / "outbox" / f"{max(jobs, default=0) + 1:08d}-{folder.name}")
            self._forget(folder.name)

    def rest(self, folder: Path, state: str, *, reason: str) -> None:
        """Move a working series to passed-by or failed, in place of what rests of it anywhere."""
        write_text(folder / REASON, f"{reason}\n")
        with self._mutex:
            self._rest(folder, folder.name, state)

    def expire(self) -> None:
        """Remove what has rested for a day; the oldest earlier while the disk is short."""
        with self._mutex:
            resting = [(path.stat().st_mtime, path) for state in EXPIRING for path in (self.root / state).iterdir()]
            for since, path in sorted(resting):
                if time.time() - since > KEEP_SECONDS or shortage(self.root, self._least_free_mib):
                    discard(path, self.temporary())

    # ---- sending

    def waiting(self, destination: str) -> list[Path]:
        """What a destination has not acknowledged, in the order in which the series were enhanced."""
        return sorted((self.root / "outbox").glob(f"*/to/{destination}/*.dcm"))

    def record(self, path: Path) -> dict[str, Any]:
        """What `commit` was told of the job to which an object belongs."""
        own, put_back = path.parents[2] / RECORD, path.parent / RECORD
        record: dict[str, Any] = json.loads((own if own.exists() else put_back).read_text())
        return record

    def answers(self, path: Path) -> dict[str, str]:
        """The status with which the destination has acknowledged each object of the job so far, by file name."""
        with suppress(FileNotFoundError):
            lines = _answers(path).read_text(errors="replace").splitlines()
            return {name: status for status, _, name in (line.partition(" ") for line in lines)}
        return {}

    def sent(self, path: Path, status: str) -> bool:
        """An object was acknowledged; returns whether it was the destination's last of its job."""
        with suppress(OSError), _answers(path).open("a") as stream:  # better a count too small than an object twice
            stream.write(f"{status} {path.name}\n")
        path.unlink()
        return self._gone(path)

    def quarantine(self, path: Path, reason: str) -> bool:
        """Take an object out of the outbox for good; returns whether it was the destination's last of its job."""
        folder = self.root / "quarantine" / path.parent.name / path.parents[2].name
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / REASON, f"{reason}\n")
        write_json(folder / RECORD, self.record(path))  # without it nobody could put the object back
        move(path, folder / path.name)
        return self._gone(path)

    def orphans(self) -> list[Path]:
        """Objects for destinations that are configured no longer."""
        objects = sorted((self.root / "outbox").glob("*/to/*/*.dcm"))
        return [path for path in objects if path.parent.name not in self._destinations]

    def _gone(self, path: Path) -> bool:
        with self._mutex:
            if not path.parent.exists():  # another destination's last object was acknowledged at the same moment
                return True
            settle(path.parent)
            if any(path.parent.glob("*.dcm")):
                return False
            self._finish(path.parents[2])
        return True

    def _finish(self, job: Path) -> None:
        """Let a job rest when no destination waits for any of it."""
        if any(job.glob("to/*/*.dcm")):
            return
        if not any(job.glob("*.dcm")):  # put back from quarantine: what it was made of rests where it rested
            with suppress(PermissionError):  # by another user, whose folder it is: it is empty, and does no harm
                discard(job, self.temporary())
        else:
            self._rest(job, job.name.split("-")[-1], "done")

    def _rest(self, folder: Path, series: str, state: str) -> None:
        shutil.rmtree(folder / "to", ignore_errors=True)
        os.utime(folder)
        self._forget(series)
        move(folder, self.root / state / series)

    def _forget(self, series: str) -> None:
        """Remove what rests of a series, when all of it has been joined with what came later."""
        for state in RESTING:
            if (self.root / state / series).exists():
                discard(self.root / state / series, self.temporary())

    def _before(self, series: str, *, states: Sequence[str]) -> list[Path]:
        """Where instances of a series lie that came before; the newest first."""
        outbox = sorted((self.root / "outbox").glob(f"*-{series}"), reverse=True)
        resting = [self.root / state / series for state in states]
        return [*outbox, *(folder for folder in resting if folder.exists())]

    # ---- starting

    def _take_up(self) -> None:
        """Find every series in the state in which the last process left it."""
        for path in (self.root / "temporary").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for job in (self.root / "outbox").iterdir():
            self._finish(job)


def _answers(path: Path) -> Path:
    """Where the answers of an object's destination to the whole job stand."""
    return path.parents[2] / f"{path.parent.name}.answers"


def _same(path: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(path, other, shallow=False)
