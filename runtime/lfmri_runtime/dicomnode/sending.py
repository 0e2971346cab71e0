"""C-STORE out: what an outbox holds leaves in order, and counts as sent when the answer says that it is stored."""

import hashlib
import re
import time
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from pynetdicom import AE, evt

from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import DicomPeer, DicomSettings
from lfmri_runtime.console.waits import Refusals
from lfmri_runtime.dicom.parsing import quiet
from lfmri_runtime.dicomnode import limits
from lfmri_runtime.dicomnode.loop import Loop
from lfmri_runtime.dicomnode.spool import Spool

#: What we derive; each is offered in both encodings, so that the destination takes the one that it has.
CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
#: Statuses of C-STORE, PS3.4 B.2.3: success, and the warnings, with which an object is stored all the same.
SUCCESS = "0000"
STORED = (SUCCESS, "B000", "B006", "B007")
#: How the statuses of a destination without room begin; nothing is wrong with the object.
OUT_OF_RESOURCES = "A7"


def folder_of(destination: DicomPeer) -> str:
    """The destination's name in the spool: its title, made fit for a folder, and what tells equal titles apart."""
    whole = f"{destination.title}@{destination.address}:{destination.port}"
    plain = re.sub(r"[^A-Za-z0-9_]", "_", destination.title.strip())
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


class Sender:
    """Empties one destination's part of the outbox.

    A destination that cannot be reached or has no room is waited for, however long: nothing is wrong with what waits
    for it. Only what else it answers about an object, or breaking off while it gets one, counts against that object;
    the others go on.

    Args:
        destination: who gets it.
        settings: title and retries.
        spool: with the outbox.
        journal: gets what was sent, refused and given up.
        tls: how the connection is secured; None for not at all.
    """

    def __init__(
        self, destination: DicomPeer, settings: DicomSettings, spool: Spool, journal: Journal, *, tls: Any
    ) -> None:
        self._destination = destination
        self._settings = settings
        self._spool = spool
        self._journal = journal
        self._tls = None if tls is None else (tls, destination.address)
        self._folder = folder_of(destination)
        self._outage = Refusals()
        self._refusals: dict[Path, Refusals] = {}
        self._seconds: dict[Path, float] = {}
        self._entity = _entity(settings.title)
        self.loop = Loop(f"dicom sender {self._folder}", self._round, journal)

    def _round(self) -> None:
        """Send all that is due in one association."""
        if self._outage.waiting():
            return
        due = [path for path in self._spool.waiting(self._folder) if not self._refusals.get(path, Refusals()).waiting()]
        if not due:
            return
        association = self._entity.associate(
            self._destination.address,
            self._destination.port,
            ae_title=self._destination.title,
            max_pdu=limits.PDU_BYTES,
            tls_args=self._tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, limits.prepare), (evt.EVT_CONN_OPEN, keep_answers)],
        )
        if not association.is_established:
            self._wait("refused the association" if association.is_rejected else "cannot be reached")
            return
        try:
            for path in due:
                if self.loop.stopping.is_set() or not association.is_established:
                    break
                started = time.perf_counter()
                answer = _store(association, path)
                if answer.startswith(OUT_OF_RESOURCES):
                    self._wait(f"answered {answer}: it has no room")
                    break
                self._outage = Refusals()
                self._note(path, answer, time.perf_counter() - started)
        finally:
            association.release()
            association.join(limits.PDU_SECONDS)

    def _wait(self, reason: str) -> None:
        if not self._outage.count:
            self._journal.record("delayed", surface="dicom", destination=self._folder, reason=reason)
        self._outage.add(self._settings.retry_seconds)

    def _note(self, path: Path, answer: str, spent: float) -> None:
        """Do what an answer asks for; the journal gets what was stored, when nothing of the job is left."""
        job = path.parents[2]
        self._seconds[job] = self._seconds.get(job, 0.0) + spent
        record, answers = self._spool.record(path), self._spool.answers(path)
        if answer in STORED:
            self._refusals.pop(path, None)
            answers[path.name] = answer
            last = self._spool.sent(path, answer)
        else:
            last = self._refused(path, answer, record)
        if not last:
            return
        event = {**record, "instances": len(answers), "seconds": {"send": round(self._seconds.pop(job), 4)}}
        warnings = sorted({*answers.values()} - {SUCCESS})
        if answers:
            event |= {"warnings": warnings} if warnings else {}
            self._journal.record("sent", surface="dicom", destination=self._folder, **event)

    def _refused(self, path: Path, answer: str, record: dict[str, Any]) -> bool:
        """Try again later, or give up; returns whether nothing is left of the job."""
        refusals = self._refusals.setdefault(path, Refusals())
        refusals.add(self._settings.retry_seconds)
        if refusals.count <= self._settings.retries:
            return False
        reason = f"answered {answer}, {refusals.count} times; expected {SUCCESS}"
        self._journal.record(
            "failed", surface="dicom", source=record["source"], destination=self._folder, reason=reason
        )
        del self._refusals[path]
        return self._spool.quarantine(path, reason)


def keep_answers(event: Any) -> None:
    """EVT_CONN_OPEN of a call: let none but the caller take messages.

    pynetdicom's own thread looks for requests without waiting, and drops an answer that it finds in its place; it is
    paused while a caller waits, but not always in time. Nobody sends us requests where we call.
    """
    take = event.assoc.dimse.get_msg
    event.assoc.dimse.get_msg = lambda block=False: take(block=True) if block else (None, None)


def _store(association: Any, path: Path) -> str:
    """Send one object; returns the status, four hexadecimal digits, or what came in its place."""
    with quiet():
        dataset = pydicom.dcmread(path)
    try:
        status = association.send_c_store(dataset)
    except (ValueError, RuntimeError):
        # No presentation context for it, or an association that ended between two objects.
        return "with no way to take its kind" if association.is_established else "by ending the association"
    return f"{status.Status:04X}" if "Status" in status else "by ending the association"


def _entity(title: str) -> Any:
    entity = AE(title)
    entity.connection_timeout = entity.acse_timeout = limits.ASSOCIATE_SECONDS
    entity.dimse_timeout = entity.network_timeout = limits.IDLE_SECONDS
    for storage_class in CLASSES:
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            entity.add_requested_context(storage_class, syntax)
    return entity
