"""The listening socket: strangers are turned away before anything is read, and nobody can hold up the others."""

import socket
import ssl
import threading
from typing import Any, cast

from pynetdicom.transport import ThreadedAssociationServer

from lfmri_runtime.dicomnode import limits
from lfmri_runtime.dicomnode.peers import Peers

#: Connections at the same time; each is two threads.
MOST_CONNECTIONS = 16
#: At the end, wait so long for an association's thread; one that was never asked for anything has longer to live.
LAST_SECONDS = 1.0


class Server(ThreadedAssociationServer):
    """pynetdicom's server with time limits on every connection, and handshakes off the thread that accepts."""

    request_queue_size = MOST_CONNECTIONS
    daemon_threads = True
    peers: Peers

    def __init__(self, *how: Any, **named: Any) -> None:
        self._handshakes = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*how, **named)

    def round(self) -> None:
        """Accept one connection, or none for a while; dead associations are collected now and then."""
        self.handle_request()
        self.service_actions()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; the TLS handshake comes later, in the connection's own thread."""
        connection, address = cast(socket.socket, self.socket).accept()
        connection.settimeout(limits.PDU_SECONDS)
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Turn away who is not listed, and who comes when there are too many."""
        return self.peers.know_address(client_address[0]) and len(self.active_associations) < MOST_CONNECTIONS

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands, then associate."""
        try:
            if isinstance(request, ssl.SSLSocket):
                self._shake_hands(request)
            self.finish_request(request, client_address)
        except (OSError, RuntimeError):  # RuntimeError: no more threads
            self.shutdown_request(request)

    def _shake_hands(self, connection: ssl.SSLSocket) -> None:
        if not self._handshakes.acquire(blocking=False):
            raise ConnectionAbortedError
        try:
            connection.do_handshake()
        finally:
            self._handshakes.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no event, and its details are not for standard error."""

    def close(self) -> None:
        """Stop listening, end all associations: what was not acknowledged will be sent again."""
        self.server_close()
        associations = self.active_associations
        for association in associations:
            association.abort()
        for association in associations:  # a thread that runs while the interpreter ends can take it down
            association.join(LAST_SECONDS)
