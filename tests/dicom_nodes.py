"""A DICOM node in a process of its own, and the two ends that it talks to, for tests."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.transport import AssociationSocket

from lfmri_runtime.dicomnode.sending import keep_answers

Found = TypeVar("Found")

#: Longest wait for anything that should happen; generous, since other work shares the machine.
DEADLINE = 60.0
CONSOLE, NODE, ARCHIVE = "CONSOLE", "LFMRI", "ARCHIVE"


def _close(endpoint: Any) -> None:
    if endpoint.socket is None:
        return
    with suppress(OSError):
        endpoint.socket.shutdown(socket.SHUT_RDWR)
    endpoint.socket.close()


#: pynetdicom's own leaves the socket of a refused call to the garbage collector, which warns.
AssociationSocket._shutdown_socket = _close


def wait_until(found: Callable[[], Found], what: str, *, deadline: float = DEADLINE) -> Found:
    """Poll until `found` gives something true; returns it."""
    end = time.monotonic() + deadline
    while not (value := found()):
        assert time.monotonic() < end, f"no {what} within {deadline} s"
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """`lfmri serve` with a DICOM node, its spool and its audit log below one folder.

    Args:
        folder: of all that it writes.
        bundle: to use.
        archive_port: where the enhanced series go.
        prefix: a command that runs another.
        quiet: seconds after which a series is complete.
        settings: further lines of [dicom].
    """

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        archive_port: int,
        *,
        prefix: Sequence[str] = (),
        quiet: float = 0.5,
        settings: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.spool, self.audit = free_port(), folder / "spool", folder / "audit.jsonl"
        self._said = folder / "stderr.txt"
        self.config = folder / "lfmri.toml"
        self.config.write_text(
            f"""
            [model]
            bundle = "{bundle}"
            threads = 1
            warm_side = 16
            [audit]
            path = "{self.audit}"
            [disk]
            least_free_mib = 1
            [dicom]
            port = {self.port}
            spool = "{self.spool}"
            quiet_seconds = {quiet}
            retry_seconds = 0.2
            peers = [{{ title = "{CONSOLE}", address = "127.0.0.1", port = 0 }}]
            destinations = [{{ title = "{ARCHIVE}", address = "127.0.0.1", port = {archive_port} }}]
            {settings}
            """
        )
        self._prefix = tuple(prefix)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Node":
        before = len(self.events("ready"))
        command = [*self._prefix, sys.executable, "-m", "lfmri", "serve", "--config", str(self.config)]
        with self._said.open("wb") as stream:
            self.process = subprocess.Popen(command, stderr=stream)
        wait_until(lambda: len(self.events("ready")) > before or self._ended(), "ready node")
        assert self.process.poll() is None, self._said.read_text()
        return self

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """As an outage does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> str:
        """As systemd does; returns what it said on standard error beside what runs and why nothing else does."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(DEADLINE)
        assert code == 0, f"{code}: {self._said.read_text()}"
        lines = self._said.read_text().splitlines(keepends=True)
        assert sum(line.startswith("lfmri: ready: ") for line in lines) == 1
        return "".join(line for line in lines if not line.startswith(("lfmri: ready: ", "lfmri: note: ")))

    def __enter__(self) -> "Node":
        return self.start()

    def __exit__(self, *_: Any) -> None:
        if not self._ended():
            self.kill()

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The audit log's lines of these kinds, all without one."""
        lines = self.audit.read_text().splitlines() if self.audit.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if not kinds or event["event"] in kinds]

    def state(self, name: str) -> list[str]:
        """Names of what is in one of the spool's folders."""
        return sorted(path.name for path in (self.spool / name).glob("*"))


class Archive:
    """A storage SCP that keeps what it gets.

    Args:
        status: what to answer for a SOP instance UID.
        tls: context to listen with.
    """

    def __init__(self, *, port: int = 0, status: Callable[[str], int] = lambda uid: 0x0000, tls: Any = None) -> None:
        self.port = port or free_port()
        self.got: list[tuple[str, str, bytes]] = []
        self._status, self._tls = status, tls
        self._lock = threading.Lock()
        self._server: Any = None

    def _store(self, event: Any) -> int:
        content = event.request.DataSet.getvalue()
        uid = str(event.request.AffectedSOPInstanceUID)
        status = self._status(uid)
        if status == 0x0000:
            with self._lock:
                self.got.append((uid, str(event.context.transfer_syntax), content))
        return status

    def __enter__(self) -> "Archive":
        entity = AE(ARCHIVE)
        entity.maximum_associations = 20
        entity.add_supported_context(MRImageStorage)
        entity.require_called_aet = True
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=self._tls
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()

    def uids(self) -> list[str]:
        with self._lock:
            return [uid for uid, _, _ in self.got]


def associate(
    port: int, *, title: str = CONSOLE, called: str = NODE, tls: Any = None, patience: float = DEADLINE
) -> Any:
    entity = AE(title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = patience
    entity.add_requested_context(MRImageStorage)
    entity.add_requested_context("1.2.840.10008.1.1")
    handlers = [(evt.EVT_CONN_OPEN, _at_once), (evt.EVT_CONN_OPEN, keep_answers)]
    return entity.associate("127.0.0.1", port, ae_title=called, tls_args=tls, evt_handlers=handlers)


def _at_once(event: Any) -> None:
    """Without this every instance takes 40 ms longer: Nagle's algorithm meets delayed acknowledgements."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def send(port: int, datasets: Sequence[Dataset], **how: Any) -> list[int]:
    """Send over one association; the statuses, -1 where it broke."""
    association = associate(port, **how)
    assert association.is_established
    answers = [association.send_c_store(dataset) if association.is_established else Dataset() for dataset in datasets]
    association.release()
    return [answer.get("Status", -1) for answer in answers]
