"""One client's socket, read and written by deadlines: nobody can hold a thread or fill the memory by being slow."""

import select
import socket
import time
from collections import deque
from collections.abc import Callable

from lfmri_runtime.errors import InputRefused

#: Bytes taken from the socket at a time; memory grows with what has really come.
PIECE_BYTES = 1 << 18
#: While more than this waits to be sent, no further message should be read.
MOST_PENDING = 64 << 20
#: Between two looks at whether the service is stopping.
LOOK_SECONDS = 0.25
#: After the last word the client may finish its own: closing at once would reset the stream and lose our text.
LINGER_SECONDS = 2.0


class Channel:
    """Reads exactly, and sends what waits whenever the client takes it, so that neither side waits for the other.

    Args:
        connection: a connected stream socket; closed by `close`.
        on_wait: called before a message is read, and a few times a second while it is waited for, with whether
            nothing has come; what it raises ends the wait.

    Attributes:
        queued: bytes given to `send` so far.
        sent: of these, how many the client's machine has taken.
        began: `time.perf_counter` when the latest message's first byte was there.
    """

    def __init__(self, connection: socket.socket, *, on_wait: Callable[[bool], None] = lambda idle: None) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_wait = on_wait
        self._pending: deque[memoryview] = deque()
        self.queued = 0
        self.sent = 0
        self.began = 0.0

    def read_first(self, count: int, *, seconds: float) -> bytearray:
        """Wait for the first bytes of a message; empty where the client has ended the stream between messages.

        Raises:
            InputRefused: silence for so long, or an end within these bytes.
            OSError: the connection broke.
        """
        deadline = time.monotonic() + seconds
        self._on_wait(False)
        while not self._ready(min(deadline, time.monotonic() + LOOK_SECONDS)):
            self._on_wait(True)
            if time.monotonic() >= deadline:
                raise InputRefused(f"nothing came for {seconds:g} s; expected a message: send close when all is sent")
        self.began = time.perf_counter()
        first = self._socket.recv(count)
        return bytearray(first) + self.read(count - len(first), deadline=deadline) if first else bytearray()

    def read(self, count: int, *, deadline: float) -> bytearray:
        """Read exactly `count` bytes.

        Args:
            count: bytes, already checked against a cap.
            deadline: of `time.monotonic`.

        Raises:
            InputRefused: the stream ended early or the time is over.
            OSError: the connection broke.
        """
        content = bytearray()
        while len(content) < count:
            content += self._piece(count - len(content), deadline)
        return content

    def discard(self, count: int, *, deadline: float) -> None:
        """Read `count` bytes and forget them; raises as `read` does."""
        while count:
            count -= len(self._piece(count, deadline))

    def send(self, *parts: bytes | bytearray) -> None:
        """Let bytes wait to be sent; they leave while messages are read, and at the latest in `flush`."""
        for part in parts:
            if part:
                self._pending.append(memoryview(part))
                self.queued += len(part)
        self._push()

    def flush(self, *, seconds: float, most: int = 0) -> None:
        """Wait until no more than `most` bytes wait to be sent.

        Raises:
            InputRefused: the client does not take them within this time.
            OSError: the connection broke.
        """
        deadline = time.monotonic() + seconds
        while self.queued - self.sent > most:
            self._poll(select.POLLOUT, deadline)
            self._push()
            if self.queued - self.sent > most and time.monotonic() >= deadline:
                raise InputRefused(f"the client did not take the answer within {seconds:g} s; expected it to read")

    def make_room(self, *, seconds: float) -> None:
        """Wait until a further message may be read; raises as `flush` does."""
        self.flush(seconds=seconds, most=MOST_PENDING)

    def close(self) -> None:
        """End the stream, let the client finish its own for a moment, and close the socket."""
        deadline = time.monotonic() + LINGER_SECONDS
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline:
                self._poll(select.POLLIN, deadline)
                if not self._socket.recv(PIECE_BYTES):
                    break
        except OSError:  # gone already, or silent until now
            pass
        finally:
            self._socket.close()

    def _piece(self, count: int, deadline: float) -> bytes:
        while not self._ready(deadline):
            if time.monotonic() >= deadline:
                raise InputRefused("a message did not arrive whole in time; expected the rest of it: check the network")
        piece = self._socket.recv(min(count, PIECE_BYTES))
        if not piece:
            raise InputRefused("the stream ended within a message; expected the rest of it: send the scan again")
        return piece

    def _ready(self, deadline: float) -> bool:
        """Send what can be sent while waiting for something to read; False when there is nothing yet."""
        ready = self._poll(select.POLLIN | (select.POLLOUT if self._pending else 0), deadline)
        if ready & select.POLLOUT:
            self._push()
        return bool(ready & (select.POLLIN | select.POLLHUP | select.POLLERR))

    def _poll(self, events: int, deadline: float) -> int:
        poll = select.poll()
        poll.register(self._socket, events)
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        return ready[0][1] if ready else 0

    def _push(self) -> None:
        """Hand the system as much as it takes now."""
        while self._pending:
            try:
                count = self._socket.send(self._pending[0])
            except BlockingIOError:
                return
            self.sent += count
            rest = self._pending.popleft()[count:]
            if rest:
                self._pending.appendleft(rest)
