"""What one association may cost: pynetdicom reads as many bytes, and waits as long, as the other side wishes.

Its sockets wait without end and believe every length, so both are bounded here, by the handlers that it offers.
"""

import socket
import threading
import time
from functools import partial
from typing import Any

from lfmri_runtime.dicom.parsing import MAX_FILE_BYTES

#: Offered as the most bytes of a P-DATA PDU; as much as dcmtk takes.
PDU_BYTES = 131072
#: No PDU is longer: a request of 128 contexts with ten transfer syntaxes each has 50 KiB.
MOST_PDU_BYTES = 2 * PDU_BYTES
#: Bytes of all instances that are arriving at the same time, which wait in memory until they are whole.
MOST_BYTES = 2 * MAX_FILE_BYTES
#: Instances that wait for an answer in one association; DICOM allows one unless more are negotiated (PS3.7 D.3.3.3).
MOST_WAITING = 1
#: A PDU arrives whole, and is taken whole, within this.
PDU_SECONDS = 30.0
#: An instance arrives whole within this; the largest, at 1 MB/s.
INSTANCE_SECONDS = 600.0
#: Least wait for the next message of an association, and for association requests and answers.
IDLE_SECONDS = 60.0
ASSOCIATE_SECONDS = 15.0


def prepare(event: Any) -> None:
    """EVT_CONN_OPEN: bound what is read from the connection, and send small messages at once."""
    endpoint = event.assoc.dul.socket
    endpoint.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    endpoint.socket.settimeout(PDU_SECONDS)
    endpoint.recv = partial(receive, endpoint)


def receive(endpoint: Any, count: int) -> bytearray:
    """Read bytes of one PDU, fewer where the connection ends.

    Raises:
        OSError: more than a PDU may have, or slower than it may come.
    """
    if count > MOST_PDU_BYTES:
        endpoint.socket.shutdown(socket.SHUT_RDWR)  # or the connection would stay open until the association times out
        raise OSError(f"a PDU of {count} bytes")
    deadline = time.monotonic() + PDU_SECONDS
    received = bytearray()
    while len(received) < count:
        endpoint.socket.settimeout(max(deadline - time.monotonic(), 1e-3))
        piece = endpoint.socket.recv(count - len(received))
        if not piece:
            break
        received += piece
    endpoint.socket.settimeout(PDU_SECONDS)
    return received


class Budget:
    """Bytes that all associations together hold of instances on their way."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._taken = 0
        self._mutex = threading.Lock()

    def take(self, count: int) -> bool:
        """Take bytes, or give them back; False, with nothing taken, if there are too few."""
        with self._mutex:
            if self._taken + count > self._most:
                return False
            self._taken += count
            return True


class Meter:
    """Counts the bytes and the seconds of the message that one association sends; ends the association at a limit.

    Args:
        budget: shared by all associations.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._bytes = 0
        self._began = 0.0

    def count(self, event: Any) -> None:
        """EVT_PDU_RECV: called before pynetdicom adds the fragments to the message."""
        dimse = event.assoc.dimse
        if dimse.message is None:
            self.clear()
            self._began = time.monotonic()
        size = sum(len(item.data) for item in getattr(event.pdu, "presentation_data_value_items", ()))
        fits = self._bytes + size <= MAX_FILE_BYTES and self._budget.take(size)
        self._bytes += size if fits else 0
        late = time.monotonic() - self._began > INSTANCE_SECONDS
        if not fits or late or dimse.msg_queue.qsize() > MOST_WAITING:
            event.assoc.dul.socket.close()

    def clear(self, event: Any = None) -> None:
        """EVT_CONN_CLOSE: give back what was taken."""
        self._budget.take(-self._bytes)
        self._bytes = 0
