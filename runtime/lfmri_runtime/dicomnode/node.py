"""The DICOM node as a surface of a service."""

from pathlib import Path

from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ConsoleSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.dicomnode.peers import Peers, check_title
from lfmri_runtime.dicomnode.receiving import Receiver
from lfmri_runtime.dicomnode.sending import Sender, folder_of
from lfmri_runtime.dicomnode.spool import Spool
from lfmri_runtime.dicomnode.tls import contexts
from lfmri_runtime.dicomnode.working import Worker
from lfmri_runtime.errors import UsageError


class DicomNode:
    """C-ECHO and C-STORE in, C-STORE out, with a durable spool between.

    Args:
        settings: checked.
        station: the one device.
        journal: gets what happens.

    Raises:
        UsageError: a title or certificates that cannot be, or nowhere to send to.
        TryAgainLater: the spool is another node's, or the port is taken.
    """

    name = "dicom"

    def __init__(self, settings: ConsoleSettings, station: Station, journal: Journal) -> None:
        dicom = settings.dicom
        for title in (dicom.title, *(peer.title for peer in (*dicom.peers, *dicom.destinations))):
            check_title(title)
        if not dicom.destinations:
            raise UsageError(
                "dicom.destinations is empty; expected somebody to send enhanced series to (--destination)"
            )
        answering, calling = contexts(dicom) or (None, None)
        peers = Peers(dicom.peers)
        self._journal = journal
        self._spool = Spool(
            Path(dicom.spool),
            destinations=[folder_of(destination) for destination in dicom.destinations],
            least_free_mib=settings.disk.least_free_mib,
        )
        self.folders: tuple[Path, ...] = (self._spool.root,)
        self._receiver = Receiver(
            dicom, peers, self._spool, journal, least_free_mib=settings.disk.least_free_mib, tls=answering
        )
        worker = Worker(settings, self._spool, station, journal)
        senders = [Sender(peer, dicom, self._spool, journal, tls=calling) for peer in dicom.destinations]
        self._loops = [worker.loop, *(sender.loop for sender in senders), self._receiver.loop]

    def start(self) -> None:
        """Take up the spool, and begin to accept."""
        self._spool.begin()
        for path in self._spool.orphans():
            reason = "its destination is no longer configured"
            source = self._spool.record(path)["source"]
            self._spool.quarantine(path, reason)
            self._journal.record("failed", surface="dicom", source=source, reason=reason)
        for loop in self._loops:
            loop.start()

    def trouble(self) -> str | None:
        """Which thread has died."""
        return next(filter(None, (loop.trouble() for loop in self._loops)), None)

    def stop(self) -> None:
        """Accept nothing new; the series that is being enhanced is finished and waits in the outbox."""
        self._receiver.stop()
        for loop in self._loops:
            loop.stopping.set()
        for loop in self._loops:
            loop.stop()
        self._spool.close()
