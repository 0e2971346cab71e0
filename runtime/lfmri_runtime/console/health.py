"""/live, /ready and /metrics over HTTP. Being alive is not being ready: /ready says why not."""

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lfmri_runtime.console.metrics import Metrics
from lfmri_runtime.console.settings import HealthSettings
from lfmri_runtime.errors import TryAgainLater

#: A client that says nothing for so long is let go.
TIMEOUT_SECONDS = 5.0

Reason = Callable[[], str | None]


class HealthServer:
    """Answers GET /live, /ready and /metrics.

    Args:
        settings: where to listen.
        metrics: shown at /metrics.
        not_live: why the process should be restarted; None when it lives.
        not_ready: why nothing should be sent now; None when it is ready.

    Raises:
        TryAgainLater: the address is taken.
    """

    def __init__(self, settings: HealthSettings, metrics: Metrics, *, not_live: Reason, not_ready: Reason) -> None:
        answers = {"/live": not_live, "/ready": not_ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_SECONDS
            server_version = "lfmri"
            sys_version = ""

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    body, kind = metrics.render(ready=not_ready() is None), metrics.content_type
                    self._answer(HTTPStatus.OK, body, kind)
                elif self.path in answers:
                    reason = answers[self.path]()
                    status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
                    self._answer(status, f"{reason or 'yes'}\n".encode(), "text/plain; charset=utf-8")
                else:
                    self._answer(HTTPStatus.NOT_FOUND, b"expected /live, /ready or /metrics\n", "text/plain")

            def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Health checks come every few seconds; the audit log is for scans."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET

            def handle_error(self, *_: Any) -> None:
                """A client that went away is no event."""

        try:
            self._server = Server((settings.address, settings.port), Handler)
        except OSError as error:
            raise TryAgainLater(
                f"{settings.address}:{settings.port}: {error.strerror}; expected a free port for health"
            ) from None
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
