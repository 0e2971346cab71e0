"""Who may talk to the DICOM node, how much, how long, and how secured; in this process, with limits made small."""

import socket
import ssl
import struct
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import DicomPeer, DicomSettings
from lfmri_runtime.dicom.series import read_series
from lfmri_runtime.dicomnode import limits, receiving
from lfmri_runtime.dicomnode.peers import Peers, check_title, plain
from lfmri_runtime.dicomnode.receiving import Receiver
from lfmri_runtime.dicomnode.sending import Sender, folder_of
from lfmri_runtime.dicomnode.spool import Spool
from lfmri_runtime.dicomnode.tls import contexts
from lfmri_runtime.errors import InputRefused, TryAgainLater, UsageError

from .dicom_nodes import ARCHIVE, CONSOLE, NODE, Archive, associate, free_port, send, wait_until
from .dicoms import classic

SELF = DicomPeer(title=CONSOLE, address="127.0.0.1", port=0)
ELSEWHERE = DicomPeer(title=CONSOLE, address="127.0.0.2", port=0)
NAMESAKE = DicomPeer(title="OTHER", address="127.0.0.1", port=0)


class Events:
    """A journal's sink that keeps what it gets."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: str, fields: dict[str, Any]) -> None:
        self.all.append((event, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.all if event == kind]


class Listening:
    """A receiver with a spool, and nobody who empties it."""

    def __init__(
        self, folder: Path, *, peers: tuple[DicomPeer, ...] = (SELF,), least_free_mib: int = 0, tls: Any = None
    ):
        self.events = Events()
        self.port = free_port()
        self.spool = Spool(folder / "spool", destinations=["A"], least_free_mib=least_free_mib)
        self._receiver = Receiver(
            DicomSettings(port=self.port),
            Peers(peers),
            self.spool,
            Journal([self.events]),
            least_free_mib=least_free_mib,
            tls=tls,
        )

    def __enter__(self) -> "Listening":
        self.spool.begin()
        self._receiver.start()
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._receiver.loop.trouble() is None
        self._receiver.stop()
        self.spool.close()

    def call(self) -> socket.socket:
        """A connection without any association."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stored(self) -> int:
        return len(list((self.spool.root / "incoming").glob("*/*.dcm")))


@pytest.fixture
def datasets(tmp_path: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in classic(tmp_path / "in", shape=(16, 16, 4))]


# ---- peers


@pytest.mark.parametrize(
    ("peers", "title", "called", "accepted"),
    [
        ((SELF,), CONSOLE, NODE, True),
        ((SELF,), "STRANGER", NODE, False),
        ((SELF,), CONSOLE, "OTHER", False),
        ((ELSEWHERE,), CONSOLE, NODE, False),
        ((ELSEWHERE, NAMESAKE), CONSOLE, NODE, False),
        ((), CONSOLE, NODE, False),
    ],
)  # fmt: skip
def test_title_and_address_must_both_be_right(
    tmp_path: Path, datasets: Any, peers: tuple[DicomPeer, ...], title: str, called: str, accepted: bool
) -> None:
    with Listening(tmp_path, peers=peers) as listening:
        association = associate(listening.port, title=title, called=called)
        assert association.is_established is accepted
        if accepted:
            assert association.send_c_echo().Status == 0x0000
            assert association.send_c_store(datasets[0]).Status == 0x0000
            association.release()
    assert listening.stored() == int(accepted)
    assert "STRANGER" not in str(listening.events.all)


def test_who_is_refused_stays_refused_when_nobody_can_write_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TryAgainLater("no audit log")

    with Listening(tmp_path, peers=(ELSEWHERE, NAMESAKE)) as listening:
        monkeypatch.setattr(listening.events, "record", fail)
        assert not associate(listening.port).is_established


def test_addresses_have_one_spelling_and_titles_are_checked() -> None:
    assert plain("::ffff:10.0.0.1") == "10.0.0.1"
    assert Peers([DicomPeer(title="A", address="localhost", port=0)]).know("A ", "127.0.0.1")
    with pytest.raises(TryAgainLater, match="known host name"):
        Peers([DicomPeer(title="A", address="no.such.host.invalid", port=0)])
    for title in ("", " ", "X" * 17, "A\\B", "Ä"):
        with pytest.raises(UsageError, match="1 to 16"):
            check_title(title)


# ---- how much and how long


def test_nothing_is_taken_while_the_disk_is_short(tmp_path: Path, datasets: Any) -> None:
    with Listening(tmp_path, least_free_mib=1 << 40) as listening:
        assert send(listening.port, datasets[:1]) == [0xA700]
    assert listening.stored() == 0
    assert "free some space" in listening.events.of("refused")[0]["reason"]


def test_a_spool_that_breaks_is_answered_with_a_failure(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with Listening(tmp_path) as listening:
        with monkeypatch.context() as patch:
            patch.setattr(receiving.os, "fsync", full)
            assert send(listening.port, datasets[:1]) == [0xA700]
        assert send(listening.port, datasets[1:2]) == [0x0000]
        assert listening.stored() == 1
        assert not list((listening.spool.root / "temporary").iterdir())


def test_an_instance_without_uids_is_refused(tmp_path: Path, datasets: Any) -> None:
    del datasets[0].SeriesInstanceUID
    with Listening(tmp_path) as listening:
        assert send(listening.port, datasets[:2]) == [0xC000, 0x0000]


def test_an_instance_over_the_limit_ends_its_association_alone(
    tmp_path: Path, datasets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 4096)
    large, *others = datasets
    large.add_new(0x00420011, "OB", b"\0" * 300_000)
    with Listening(tmp_path) as listening:
        assert send(listening.port, [large]) == [-1]
        assert send(listening.port, others) == [0, 0, 0]
        assert listening.stored() == 3


def test_all_associations_share_a_budget() -> None:
    budget = limits.Budget(100)
    meters = [limits.Meter(budget), limits.Meter(budget)]
    closed = []

    def pdu(size: int, *, first: bool) -> Any:
        dimse = SimpleNamespace(message=None if first else object(), msg_queue=SimpleNamespace(qsize=lambda: 0))
        dul = SimpleNamespace(socket=SimpleNamespace(close=lambda: closed.append(size)))
        item = SimpleNamespace(data=b"\0" * size)
        return SimpleNamespace(
            assoc=SimpleNamespace(dimse=dimse, dul=dul), pdu=SimpleNamespace(presentation_data_value_items=[item])
        )

    meters[0].count(pdu(60, first=True))
    meters[1].count(pdu(30, first=True))
    assert closed == []
    meters[1].count(pdu(20, first=False))
    assert closed == [20]
    meters[1].clear()
    meters[0].count(pdu(40, first=False))
    meters[0].count(pdu(90, first=True))
    assert closed == [20]


#: Half a message, and then silence.
HALVES = {
    "nothing": b"",
    "half a header": b"\x01\x00\x00",
    "half an association request": struct.pack(">BBL", 1, 0, 200) + b"\0" * 50,
    "data before an association": struct.pack(">BBL", 4, 0, 100_000) + b"\0" * 50,
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES.keys())
def test_half_open_connections_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bytes) -> None:
    monkeypatch.setattr(limits, "PDU_SECONDS", 0.3)
    monkeypatch.setattr(limits, "ASSOCIATE_SECONDS", 0.3)
    with Listening(tmp_path) as listening, listening.call() as connection:
        connection.sendall(half)
        while connection.recv(4096):  # an A-ABORT may come first
            pass


def test_who_sends_a_byte_at_a_time_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PDU_SECONDS", 0.5)
    with Listening(tmp_path) as listening, listening.call() as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 100_000))
        connection.settimeout(0.1)
        ended = wait_until(lambda: _drip(connection), "end of a connection that drips")
    assert ended


def _drip(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"\0")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_pdu_that_lies_about_its_length_is_closed_before_it_comes(tmp_path: Path) -> None:
    with Listening(tmp_path) as listening, listening.call() as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
        assert connection.recv(4096) == b""


def test_connections_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: Any) -> None:
    monkeypatch.setattr("lfmri_runtime.dicomnode.server.MOST_CONNECTIONS", 2)
    monkeypatch.setattr(limits, "ASSOCIATE_SECONDS", 0.5)
    with Listening(tmp_path) as listening:
        held = [listening.call() for _ in range(2)]
        wait_until(lambda: len(listening._receiver._server.active_associations) == 2, "two connections")
        with listening.call() as third:
            assert third.recv(1) == b""
        for connection in held:
            connection.close()
        wait_until(lambda: not listening._receiver._server.active_associations, "end of both")
        assert send(listening.port, datasets[:1]) == [0]


# ---- TLS


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.path = self._write(f"{name}.pem", self._certificate(self._name, self._key.public_key(), authority=True))

    def settings(self, name: str) -> DicomSettings:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return DicomSettings(
            certificate=self._write(f"{name}.pem", self._certificate(subject, key.public_key(), authority=False)),
            key=self._write(f"{name}.key", private),
            authority=self.path,
        )

    def _certificate(self, subject: x509.Name, key: Any, *, authority: bool) -> bytes:
        now = datetime.now(timezone.utc)
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def test_tls_takes_those_alone_whose_certificate_the_authority_signed(
    tmp_path: Path, datasets: Any, ours: Authority
) -> None:
    answering, _ = contexts(ours.settings("node")) or (None, None)
    _, calling = contexts(ours.settings("console")) or (None, None)
    _, foreign = contexts(Authority(tmp_path, "theirs").settings("foreign")) or (None, None)
    assert calling is not None
    assert foreign is not None
    foreign.load_verify_locations(ours.path)  # it trusts us; we do not trust it
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(ours.path)
    with Listening(tmp_path, tls=answering) as listening:
        assert send(listening.port, datasets[:1], tls=(calling, "127.0.0.1")) == [0]
        for refused in (None, (foreign, "127.0.0.1"), (old, "127.0.0.1")):
            assert not associate(listening.port, tls=refused).is_established
        with listening.call():  # who never shakes hands holds up nobody
            assert send(listening.port, datasets[1:2], tls=(calling, "127.0.0.1")) == [0]
    assert listening.stored() == 2
    assert calling.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_what_leaves_is_secured_too(tmp_path: Path, ours: Authority) -> None:
    answering, _ = contexts(ours.settings("archive")) or (None, None)
    _, calling = contexts(ours.settings("node")) or (None, None)
    paths = classic(tmp_path / "in", shape=(16, 16, 4))
    with Archive(tls=answering) as archive:
        # Localhost is not what the certificate names.
        for name, tls, arrived in (("127.0.0.1", None, 0), ("localhost", calling, 0), ("127.0.0.1", calling, 4)):
            peer = DicomPeer(title=ARCHIVE, address=name, port=archive.port)
            spool = Spool(tmp_path / f"{name}-{arrived}", destinations=[folder_of(peer)], least_free_mib=0)
            (spool.root / "working" / "a").mkdir()
            spool.commit(spool.root / "working" / "a", paths, {"source": "1.2"})
            Sender(peer, DicomSettings(), spool, Journal(), tls=tls)._round()
            assert len(archive.got) == arrived
            spool.close()


def test_certificates_that_do_not_fit_are_a_usage_error(tmp_path: Path, ours: Authority) -> None:
    good = ours.settings("node")
    other = ours.settings("other")
    for wrong in ({"key": other.key}, {"certificate": str(tmp_path / "none.pem")}, {"authority": good.key}):
        with pytest.raises(UsageError, match="PEM files that belong together"):
            contexts(DicomSettings(**{**vars(good), **wrong}))
    assert contexts(DicomSettings()) is None


# ---- pixels


def test_pixels_that_do_not_lie_in_the_lowest_bits_are_refused(tmp_path: Path) -> None:
    def left(ds: pydicom.Dataset, k: int) -> None:
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 0, 12, 15
        ds.PixelData = (np.frombuffer(ds.PixelData, np.uint16) << 4).tobytes()

    with pytest.raises(InputRefused, match=r"12 bits with HighBit 15; expected BitsStored - 1"):
        read_series(classic(tmp_path, change=left))
