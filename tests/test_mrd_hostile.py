"""The MRD server against bad, lying, slow and vanished clients: refused with a reason, in bounded memory and time."""

import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.console.journal import Journal
from lfmri_runtime.console.settings import ModelSettings, MrdSettings, OutputSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.mrd import channel, session
from lfmri_runtime.mrd.channel import Channel
from lfmri_runtime.mrd.server import MrdServer
from lfmri_runtime.mrd.session import Session

from . import mrd_client as mrd
from .bundles import MakeBundle

STREAMS = 10_000
#: Bytes that a refused stream may take at most; the smallest lie below announces more than a hundred times as much.
SMALL = 1 << 20
DEADLINE = 60.0
PIXELS = np.arange(16 * 18 * 4, dtype="<u2").reshape(4, 1, 18, 16)
XML = mrd.text(3, mrd.header_xml((16, 18), steps=1))


def series(**fields: Any) -> list[bytes]:
    return [mrd.image(one, position=(0.0, 0.0, 5.0 * k), **fields) for k, one in enumerate(PIXELS)]


GOOD = b"".join((mrd.configuration("lfmri"), XML, mrd.text(5, '{"parameters": {"seed": 3}}'), *series(), mrd.CLOSE))


class EchoStation:
    """Stands for the device where it does not matter: gives back what it gets."""

    def __init__(self, bundle: Bundle) -> None:
        self.enhancer = SimpleNamespace(bundle=bundle)
        self.settings = ModelSettings()
        self.journal = Journal()

    def enhance(self, data: np.ndarray, affine: np.ndarray, **_: Any) -> Enhanced:
        assert np.isfinite(affine).all()
        return Enhanced(data, None, affine, 1.0, {}, ())


@pytest.fixture(scope="module")
def folder(make_bundle: MakeBundle) -> Path:
    return make_bundle("y")


@pytest.fixture(scope="module")
def echo(folder: Path) -> EchoStation:
    return EchoStation(open_bundle(folder))


@pytest.fixture
def serve(echo: EchoStation) -> Iterator[Callable[..., MrdServer]]:
    servers = []

    def start(station: Any = echo, **settings: Any) -> MrdServer:
        server = MrdServer(
            MrdSettings(**{"timeout_seconds": DEADLINE, "idle_seconds": DEADLINE, **settings}),
            OutputSettings(),
            station,
        )
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def served(stream: bytes, station: Any) -> mrd.Answer:
    """One whole session in this thread: the stream is in the socket's buffer before the server looks."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        settings = MrdSettings(timeout_seconds=DEADLINE, idle_seconds=DEADLINE)
        Session(Channel(theirs), settings=settings, output=OutputSettings(), station=station).run()
        return mrd.parse(mrd.read_all(ours))


def mutated(rng: np.random.Generator) -> bytes:
    """A good session with one to four accidents: bytes changed, cut out, doubled, or the end torn off."""
    stream = bytearray(GOOD)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(stream)))
        length = int(rng.choice([1, 2, 4, 8, 64]))
        kind = rng.integers(5)
        if kind == 0:
            stream[at : at + length] = rng.bytes(length)
        elif kind == 1:
            stream[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f"]) * length
        elif kind == 2:
            del stream[at : at + length]
        elif kind == 4:
            stream[at:at] = stream[at : at + 16 * length]
        else:
            del stream[at:]
        if not stream:
            break
    return bytes(stream)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_ten_thousand_broken_streams_end_with_an_answer_or_a_reason(
    echo: EchoStation, folder: Path, serve: Callable[..., MrdServer]
) -> None:
    rng = np.random.default_rng(9002)
    assert len(served(GOOD, echo).images) == 4
    served(mutated(rng), echo)
    before, refused = resident(), 0
    for _ in range(STREAMS):
        answer = served(mutated(rng), echo)
        assert answer.closed
        refused += answer.error is not None
    assert resident() - before < 64 * SMALL
    assert STREAMS / 4 < refused < STREAMS  # some accidents hurt nothing, a free field or a pixel for example
    station = Station(ModelSettings(backend="onnxruntime", bundle=str(folder)), Journal())
    server = serve(station)
    for _ in range(100):
        with mrd.connect(server.address) as client:
            client.sendall(mutated(rng))
            client.shutdown(socket.SHUT_WR)
            assert mrd.parse(mrd.read_all(client)).closed
    assert len(mrd.exchange(server.address, GOOD).series(1000)) == 4
    station.close()


LIES = {
    "a text of 4294967295": struct.pack("<HI", 2, 0xFFFF_FFFF),
    "a text of 209715200": struct.pack("<HI", 3, 200 << 20),
    "pixels": struct.pack("<H", 1022) + mrd.header(matrix_size=(0xFFFF, 0xFFFF, 0xFFFF), channels=0xFFFF) + bytes(8),
    "attributes": struct.pack("<H", 1022) + mrd.header() + struct.pack("<Q", 1 << 63),
    "data type": struct.pack("<H", 1022) + mrd.header(data_type=9) + bytes(8),
    "acquisition": struct.pack("<H", 1008) + b"\xff" * 340,
    "waveform": struct.pack("<H", 1026) + b"\xff" * 40,
    "message id": struct.pack("<H", 99),
    "stream ended": struct.pack("<H", 1022) + mrd.header(matrix_size=(5000, 5000, 2)) + bytes(8 + 1000),
    "within a message": b"\1",
    "without a close": b"".join(series()[:2]),
}


@pytest.mark.parametrize("what", LIES)
def test_a_length_that_lies_is_refused_before_memory_is_taken(echo: EchoStation, what: str) -> None:
    served(GOOD, echo)
    tracemalloc.start()
    answer = served(LIES[what], echo)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert what in str(answer.error)
    assert answer.closed
    assert peak < SMALL


def test_a_series_without_end_is_bounded(echo: EchoStation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SERIES_BYTES", 20 * session.IMAGE_BYTES)
    answer = served(mrd.image(PIXELS[0]) * 30, echo)
    assert "a series of over" in str(answer.error)


@pytest.mark.parametrize("pixel", [np.nan, np.inf, 1e300, 0.0])
def test_pixels_that_are_no_numbers_are_refused(echo: EchoStation, pixel: float) -> None:
    one = np.full((1, 18, 16), pixel, dtype="<f8")
    messages = [mrd.image(one, position=(0.0, 0.0, 5.0 * k)) for k in range(4)]
    assert "expected" in str(served(b"".join((XML, *messages, mrd.CLOSE)), echo).error)


def ended(server: MrdServer) -> bool:
    """Whether every session ends before the deadline."""
    until = time.monotonic() + DEADLINE
    while any(thread.is_alive() for thread in server._sessions) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(thread.is_alive() for thread in server._sessions)


@pytest.mark.parametrize("first", [b"", mrd.configuration("lfmri"), GOOD[:-2000], GOOD[:1500]])
def test_a_silent_or_half_open_client_times_out(serve: Callable[..., MrdServer], first: bytes) -> None:
    server = serve(timeout_seconds=0.2, idle_seconds=0.2)
    with mrd.connect(server.address) as client:
        client.sendall(first)
        answer = mrd.parse(mrd.read_all(client))
    assert answer.error is not None
    assert "came" in answer.error or "in time" in answer.error
    assert ended(server)


def test_a_client_may_wait_longer_between_messages_than_within_one(serve: Callable[..., MrdServer]) -> None:
    server = serve(timeout_seconds=0.2)
    with mrd.connect(server.address) as client:
        client.sendall(mrd.configuration("lfmri"))
        time.sleep(0.5)  # past the limit for one message; waiting shorter could only hide a fault
        client.sendall(GOOD)
        answer = mrd.parse(mrd.read_all(client))
    assert answer.error is None
    assert answer.images


def test_a_client_that_drips_bytes_times_out(serve: Callable[..., MrdServer]) -> None:
    server = serve(timeout_seconds=0.5)
    with mrd.connect(server.address) as client:
        client.settimeout(0.02)  # a byte now and then keeps every wait for the next one short
        received = b""
        until = time.monotonic() + DEADLINE
        for byte in GOOD:
            assert time.monotonic() < until
            client.sendall(bytes([byte]))
            try:
                received = client.recv(1 << 16)
                break
            except TimeoutError:
                continue
        client.settimeout(DEADLINE)
        assert "in time" in str(mrd.parse(received + mrd.read_all(client)).error)


def test_a_client_that_never_reads_is_let_go(serve: Callable[..., MrdServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MOST_PENDING", 1 << 16)
    monkeypatch.setattr(channel, "LINGER_SECONDS", 0.2)
    server = serve(timeout_seconds=0.5)
    big = np.zeros((1, 1024, 1024), dtype="<c8")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(server.address)
    client.settimeout(DEADLINE)

    def flood() -> None:
        for _ in range(100):
            client.sendall(mrd.image(big))

    with client, pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        flood()
    assert ended(server)


def test_all_comes_back_to_a_client_that_reads_last_and_closes_after_that(serve: Callable[..., MrdServer]) -> None:
    messages = b"".join(mrd.image(np.full((1, 512, 512), n, dtype="<c8")) for n in range(20))
    with mrd.connect(serve().address) as client:
        client.sendall(messages)  # 40 MiB, more than sockets buffer
        received = bytearray()
        while len(received) < len(messages):
            received += client.recv(1 << 20)
        assert received == messages
        client.sendall(mrd.CLOSE)
        assert mrd.read_all(client) == mrd.CLOSE


def test_more_clients_than_allowed_are_turned_away(serve: Callable[..., MrdServer]) -> None:
    server = serve(connections=2)
    inside = [mrd.connect(server.address) for _ in range(2)]
    for client in inside:
        client.sendall(GOOD[:-2])  # waits for the close message
    for _ in range(20):
        assert "2 clients are connected" in str(mrd.exchange(server.address).error)
    for client in inside:
        client.sendall(mrd.CLOSE)
        assert len(mrd.parse(mrd.read_all(client)).images) == 4
        client.close()
    until = time.monotonic() + DEADLINE
    while (answer := mrd.exchange(server.address, GOOD)).error is not None:
        assert time.monotonic() < until
    assert len(answer.images) == 4


def test_a_taken_port_says_so(serve: Callable[..., MrdServer], echo: EchoStation) -> None:
    _, port = serve().address
    with pytest.raises(TryAgainLater, match=f"{port}.*free port"):
        MrdServer(MrdSettings(port=port), OutputSettings(), echo).start()  # type: ignore[arg-type]


def test_stopping_lets_a_half_received_series_finish_and_tells_the_idle(
    serve: Callable[..., MrdServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "LINGER_SECONDS", 0.2)
    server = serve()
    address = server.address
    with mrd.connect(address) as idle, mrd.connect(address) as busy:
        idle.sendall(mrd.configuration("lfmri"))
        busy.sendall(b"".join((XML, *series()[:1], mrd.image(PIXELS[0], image_type=2))))
        assert busy.recv(1)  # the phase image comes back: the series has begun
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert "stopping" in str(mrd.parse(mrd.read_all(idle)).error)
        busy.sendall(b"".join((*series()[1:], mrd.CLOSE)))
        assert len(mrd.parse(struct.pack("<H", 1022)[:1] + mrd.read_all(busy)).series(1000)) == 4
        stopper.join(DEADLINE)
        assert not stopper.is_alive()
        with pytest.raises(OSError, match="refused"):
            mrd.connect(address)
