"""The MRD server: accepts clients, a thread for each, one device behind them all."""

import select
import socket
import threading
import time
from collections import deque
from pathlib import Path

from lfmri_runtime.console.settings import MrdSettings, OutputSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.mrd.channel import LOOK_SECONDS, Channel
from lfmri_runtime.mrd.session import Session
from lfmri_runtime.mrd.wire import close_message, text_message

#: A client whose machine has vanished is noticed while its scan waits for the device (tcp(7)).
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
#: Turned-away clients whose sockets stay open a while, so that our text reaches them before a reset does.
TURNED_AWAY = 16


class MrdServer:
    """The console's MRD surface.

    Args:
        settings: where to listen and the limits.
        output: label and whether the uncertainty leaves.
        station: enhances.
    """

    name = "mrd"
    folders: tuple[Path, ...] = ()

    def __init__(self, settings: MrdSettings, output: OutputSettings, station: Station) -> None:
        self.settings = settings
        self.output = output
        self.station = station
        self._stopping = threading.Event()
        self._last_call = float("inf")
        self._sessions: set[threading.Thread] = set()
        self._turned_away: deque[socket.socket] = deque(maxlen=TURNED_AWAY)
        self._listener: socket.socket | None = None
        self._acceptor = threading.Thread(target=self._accept, name="mrd", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where the started server listens: address and port."""
        assert self._listener is not None
        host, port, *_ = self._listener.getsockname()
        return host, port

    def start(self) -> None:
        """Listen, and accept clients from now on.

        Raises:
            TryAgainLater: the address is taken or not this machine's.
        """
        where = (self.settings.address, self.settings.port)
        try:
            self._listener = socket.create_server(where, family=socket.AF_INET6 if ":" in where[0] else socket.AF_INET)
        except OSError as error:
            raise TryAgainLater(
                f"{where[0]}:{where[1]}: {error.strerror}; expected a free port of this machine for MRD"
            ) from None
        self._listener.setblocking(False)
        self._acceptor.start()

    def trouble(self) -> str | None:
        """Why the process should be restarted; None while clients are accepted."""
        return None if self._acceptor.is_alive() or self._stopping.is_set() else "no client is accepted any more"

    def stop(self) -> None:
        """Accept nobody new; half-received series may arrive within the time-out, whole ones are finished."""
        self._last_call = time.monotonic() + self.settings.timeout_seconds
        self._stopping.set()
        if self._listener is None:
            return
        self._acceptor.join()
        self._listener.close()
        for thread in list(self._sessions):
            thread.join()
        while self._turned_away:
            self._turned_away.popleft().close()

    def _accept(self) -> None:
        assert self._listener is not None
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._stopping.is_set():
            if not poll.poll(LOOK_SECONDS * 1000):
                continue
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the client is gone already, or no descriptor is free: the next look may find it better
                self._stopping.wait(LOOK_SECONDS)
                continue
            self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        self._sessions = {thread for thread in self._sessions if thread.is_alive()}
        if len(self._sessions) >= self.settings.connections:
            self._turn_away(connection)
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        thread = threading.Thread(target=self._serve, args=(connection,), name="mrd-client", daemon=True)
        self._sessions.add(thread)
        thread.start()

    def _serve(self, connection: socket.socket) -> None:
        def look(idle: bool) -> None:
            late = time.monotonic() > self._last_call
            if self._stopping.is_set() and (late or (idle and not session.busy)):
                raise TryAgainLater("the service is stopping; send this scan again later")

        channel = Channel(connection, on_wait=look)
        session = Session(channel, settings=self.settings, output=self.output, station=self.station)
        session.run()

    def _turn_away(self, connection: socket.socket) -> None:
        reason = f"{self.settings.connections} clients are connected already; connect again later"
        self.station.journal.tell("refused", surface="mrd", reason=reason)
        if len(self._turned_away) == TURNED_AWAY:
            self._turned_away.popleft().close()
        self._turned_away.append(connection)
        connection.setblocking(False)
        try:
            connection.send(text_message(f"ERR lfmri: {reason}") + close_message())
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # gone already
            pass
