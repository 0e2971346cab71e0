"""C-STORE in: an instance is acknowledged when it lies flushed in the spool, and not before."""

import os
from io import BytesIO
from typing import Any

from pydicom.filereader import read_dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, VerificationPresentationContexts, evt

from lfmri_runtime.console.disk import shortage
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import DicomSettings
from lfmri_runtime.dicom.parsing import quiet
from lfmri_runtime.dicomnode import limits
from lfmri_runtime.dicomnode.loop import Loop
from lfmri_runtime.dicomnode.peers import Peers
from lfmri_runtime.dicomnode.server import Server
from lfmri_runtime.dicomnode.spool import Spool, key
from lfmri_runtime.errors import InputRefused, TryAgainLater

#: Status of C-STORE, PS3.4 B.2.3.
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
#: Reasons of A-ASSOCIATE-RJ by a service user, PS3.8 9.3.4.
CALLING_TITLE, CALLED_TITLE = 0x03, 0x07
#: Uncompressed alone: every sender has implicit (PS3.5 10.1), and what is inflated here could be of any size.
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
MOST_ASSOCIATIONS = 8
#: Longest wait for a connection before a look at whether to stop.
ACCEPT_SECONDS = 0.5
_SERIES_INSTANCE_UID = BaseTag(0x0020000E)


class Receiver:
    """The listening half of the node.

    Args:
        settings: title, address, port.
        peers: who may send.
        spool: where instances go.
        journal: gets what is refused.
        least_free_mib: below this nothing is taken.
        tls: how connections are secured; None for not at all.

    Raises:
        TryAgainLater: the address cannot be listened on.
    """

    def __init__(
        self, settings: DicomSettings, peers: Peers, spool: Spool, journal: Journal, *, least_free_mib: int, tls: Any
    ) -> None:
        self._title = settings.title.strip()
        self._peers = peers
        self._spool = spool
        self._journal = journal
        self._least_free_mib = least_free_mib
        self._budget = limits.Budget()
        handlers = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_STORE, self._store),
        ]
        place = (settings.address, settings.port)
        try:
            self._server = _entity(settings.title, peers.titles).make_server(
                place, ssl_context=tls, evt_handlers=handlers, server_class=Server
            )
        except OSError as error:
            raise TryAgainLater(f"{place[0]}:{place[1]}: {error.strerror}; expected a free port for DICOM") from None
        self._server.peers = peers
        self._server.timeout = ACCEPT_SECONDS
        self.loop = Loop("dicom receiver", self._server.round, journal, pause=0.0)

    def start(self) -> None:
        """Begin to accept."""
        self.loop.start()

    def stop(self) -> None:
        """Accept nothing new; what was not acknowledged is not taken."""
        self.loop.stop()
        self._server.close()

    def _opened(self, event: Any) -> None:
        limits.prepare(event)
        meter = limits.Meter(self._budget)
        event.assoc.bind(evt.EVT_PDU_RECV, meter.count)
        event.assoc.bind(evt.EVT_CONN_CLOSE, meter.clear)

    def _requested(self, event: Any) -> None:
        """Both titles and the address must be right.

        What this raises goes unheard and the association goes on: so nothing comes before the refusal, and
        pynetdicom checks both titles once more by itself.
        """
        request = event.assoc.requestor.primitive
        if request.called_ae_title.strip() != self._title:
            reason = CALLED_TITLE
        elif not self._peers.know(request.calling_ae_title, event.assoc.requestor.address):
            reason = CALLING_TITLE
        else:
            return
        event.assoc.acse.send_reject(0x01, 0x01, reason)
        event.assoc.kill()
        which = "calling" if reason == CALLING_TITLE else "called"
        self._journal.record(
            "refused", surface="dicom", reason=f"{event.assoc.requestor.address}: a {which} title that is not known"
        )

    def _store(self, event: Any) -> int:
        """EVT_C_STORE; whatever this raises, pynetdicom answers with a failure."""
        short = shortage(self._spool.root, self._least_free_mib)
        if short is not None:
            return self._refuse(OUT_OF_RESOURCES, short)
        path = self._spool.temporary()
        try:
            series, instance = identify(event.request.DataSet, implicit=event.context.transfer_syntax.is_implicit_VR)
            _write(path, event)
            self._spool.accept(path, series=key(series), instance=key(instance))
        except InputRefused as error:
            return self._refuse(CANNOT_UNDERSTAND, str(error))
        except OSError as error:
            return self._refuse(OUT_OF_RESOURCES, f"the spool: {error.strerror}")
        finally:
            path.unlink(missing_ok=True)
        return SUCCESS

    def _refuse(self, status: int, reason: str) -> int:
        self._journal.record("refused", surface="dicom", reason=reason)
        return status


def identify(stream: BytesIO, *, implicit: bool) -> tuple[str, str]:
    """Series and SOP instance UID of an encoded data set; nothing behind them is looked at.

    Raises:
        InputRefused: it cannot be read so far, or has none.
    """

    def behind(tag: BaseTag, vr: str | None, length: int) -> bool:
        return bool(tag > _SERIES_INSTANCE_UID)

    stream.seek(0)
    try:
        with quiet():
            dataset = read_dataset(stream, implicit, True, stop_when=behind)
            uids = str(dataset.SeriesInstanceUID or ""), str(dataset.SOPInstanceUID or "")
    except Exception:  # noqa: BLE001 - a damaged data set raises whatever pydicom meets in it
        raise InputRefused("an instance that cannot be read; expected MR images") from None
    if not all(uids):
        raise InputRefused("an instance without SeriesInstanceUID or SOPInstanceUID; expected both")
    return uids


def _write(path: Any, event: Any) -> None:
    """The instance as a file of PS3.10, flushed."""
    with path.open("xb") as stream:
        stream.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(stream, event.file_meta)
        stream.write(event.request.DataSet.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())


def _entity(title: str, peers: list[str]) -> Any:
    entity = AE(title)
    entity.require_called_aet = True
    entity.require_calling_aet = peers
    entity.maximum_associations = MOST_ASSOCIATIONS
    entity.maximum_pdu_size = limits.PDU_BYTES
    entity.acse_timeout = limits.ASSOCIATE_SECONDS
    entity.dimse_timeout = entity.network_timeout = limits.IDLE_SECONDS
    for context in (*VerificationPresentationContexts, *AllStoragePresentationContexts):
        entity.add_supported_context(str(context.abstract_syntax), SYNTAXES)
    return entity
