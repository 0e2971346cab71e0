"""A service's life: surfaces start, the bundle warms, ready; a signal ends it when the current scan is done.

Told to systemd by its own protocol (sd_notify(3)): READY=1, STOPPING=1, and WATCHDOG=1 while every surface is alive.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from lfmri_runtime.console.disk import shortage
from lfmri_runtime.console.health import HealthServer
from lfmri_runtime.console.journal import AuditLog, Journal, Sink
from lfmri_runtime.console.metrics import Metrics
from lfmri_runtime.console.settings import ConsoleSettings
from lfmri_runtime.console.station import Station
from lfmri_runtime.errors import TryAgainLater

#: Between two looks at surfaces and disk; well below systemd's watchdog interval.
LOOK_SECONDS = 1.0


class Surface(Protocol):
    """One way in: a watched folder, the MRD server, the DICOM node.

    Attributes:
        name: folder, mrd or dicom.
        folders: where it writes; the disk's watermark is looked at there.
    """

    name: str
    folders: tuple[Path, ...]

    def start(self) -> None:
        """Take up unfinished work and begin to accept new; returns at once."""
        ...

    def trouble(self) -> str | None:
        """Why the process should be restarted (a thread of it has died); None while it works."""
        ...

    def stop(self) -> None:
        """Accept nothing new; returns when the current scan is finished or back in the spool."""
        ...


class Service:
    """Surfaces around one station.

    Args:
        settings: checked.
        sinks: take events beside the audit log and the metrics.
    """

    def __init__(self, settings: ConsoleSettings, *, sinks: Sequence[Sink] = ()) -> None:
        self.settings = settings
        metrics = Metrics() if settings.health.port else None
        self._audit = AuditLog(Path(settings.audit.path)) if settings.audit.path else None
        self.journal = Journal([*(sink for sink in (self._audit, metrics) if sink is not None), *sinks])
        self.station = Station(settings.model, self.journal)
        self.surfaces: Sequence[Surface] = ()
        self._why_not_ready: str | None = "the model is being loaded"
        self._stopping = threading.Event()
        self._health = (
            HealthServer(settings.health, metrics, not_live=self.not_live, not_ready=self.not_ready)
            if metrics is not None
            else None
        )

    @property
    def health_port(self) -> int | None:
        """Where /live, /ready and /metrics answer."""
        return None if self._health is None else self._health.port

    def not_live(self) -> str | None:
        """Why the process should be restarted; None while it works."""
        troubles = (f"{surface.name}: {trouble}" for surface in self.surfaces if (trouble := surface.trouble()))
        return self.station.trouble() or next(troubles, None)

    def not_ready(self) -> str | None:
        """Why nothing should be sent now; None when everything is in order."""
        if self._why_not_ready is not None:
            return self._why_not_ready
        folders = (folder for surface in self.surfaces for folder in surface.folders)
        short = (shortage(folder, self.settings.disk.least_free_mib) for folder in folders)
        unwritten = None if self._audit is None else self._audit.trouble()
        return self.not_live() or unwritten or next(filter(None, short), None)

    def run(self, surfaces: Sequence[Surface]) -> None:
        """Serve until SIGTERM or SIGINT, or until a surface or the device fails; call it from the main thread.

        The model is warm before anything is accepted: who can connect can rely on it.

        Raises:
            TryAgainLater: a surface died or the device failed; whoever supervises the process starts it again.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self.station.warm()
        self.surfaces = surfaces
        for surface in surfaces:
            surface.start()
        self._why_not_ready = None
        step = self.station.enhancer.step
        backend = {"name": step.name, "provider": step.provider, "precision": step.precision}
        self.journal.record(
            "ready", bundle=self.station.enhancer.bundle.sha256, backend=backend, notes=list(self.station.notes)
        )
        notify("READY=1")
        while not self._stopping.wait(LOOK_SECONDS) and self.not_live() is None:
            notify("WATCHDOG=1")
        reason = self.not_live()
        self._close(reason or "signal")
        if reason is not None:
            raise TryAgainLater(f"{reason}; stopped: start the service again")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping.set()

    def _close(self, reason: str) -> None:
        self._why_not_ready = "the service is stopping"
        notify("STOPPING=1")
        started = time.perf_counter()
        for surface in self.surfaces:
            surface.stop()
        self.station.close()
        seconds = {"stop": round(time.perf_counter() - started, 4)}
        self.journal.tell("stopped", reason=reason, seconds=seconds)
        if self._health is not None:
            self._health.close()


def notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); does nothing where no systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        channel.sendall(message.encode())
