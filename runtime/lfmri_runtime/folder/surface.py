"""The watched folder as a surface of the service: a thread that looks again and again."""

import threading
from pathlib import Path

from lfmri_runtime.console.settings import ConsoleSettings, FolderSettings
from lfmri_runtime.console.station import EnhanceOptions, Station
from lfmri_runtime.errors import TryAgainLater, UsageError
from lfmri_runtime.folder.bids import Bids
from lfmri_runtime.folder.layouts import Layout, Plain
from lfmri_runtime.folder.spool import Spool
from lfmri_runtime.folder.watching import Watcher
from lfmri_runtime.folder.work import SURFACE, Worker


class FolderSurface:
    """Watches one folder until it is stopped.

    Args:
        settings: checked; `folder`, `output` and `disk` are used.
        station: the device.

    Raises:
        UsageError: settings of the folder that cannot be.
    """

    name = SURFACE

    def __init__(self, settings: ConsoleSettings, station: Station) -> None:
        check(settings.folder)
        self._settings = settings
        self._station = station
        self.folders: tuple[Path, ...] = (Path(settings.folder.output),)
        self._stopping = threading.Event()
        self._trouble: str | None = None
        self._delayed = False
        self._thread = threading.Thread(target=self._run, name=SURFACE, daemon=True)
        self._spool: Spool | None = None

    def start(self) -> None:
        """Hold both folders and begin to look.

        Raises:
            TryAgainLater: another watcher holds one of them, or they cannot be written.
        """
        folder = self._settings.folder
        self._spool = Spool(Path(folder.input), Path(folder.output), layout=folder.layout)
        worker = make_worker(self._settings, self._station, EnhanceOptions(grid=folder.grid))
        worker.layout.prepare()
        self._watcher = Watcher(self._spool, worker, least_free_mib=self._settings.disk.least_free_mib)
        self._thread.start()

    def trouble(self) -> str | None:
        """Why looking has ended; None while it goes on."""
        return self._trouble

    def stop(self) -> None:
        """Finish the current item; what has not been claimed stays where it is."""
        self._stopping.set()
        if self._spool is not None:
            self._thread.join()
            self._spool.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._look()
                self._stopping.wait(self._settings.folder.poll_seconds)
        except OSError as error:
            self._trouble = f"the watched folder: {error.strerror}"
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            self._trouble = f"unexpected {type(error).__name__}"

    def _look(self) -> None:
        """Look once; a delay is told when it begins, not at every look while it lasts."""
        try:
            self._watcher.look(self._stopping.is_set)
        except TryAgainLater as error:
            if not self._delayed:
                self._station.journal.tell("delayed", surface=SURFACE, reason=str(error))
            self._delayed = True
        else:
            self._delayed = False


def check(folder: FolderSettings) -> None:
    """Check what the settings' types cannot say.

    Raises:
        UsageError: naming the setting.
    """
    if not folder.input or not folder.output:
        raise UsageError("folder.input or folder.output is empty; expected both: where scans arrive and where they go")


def make_worker(settings: ConsoleSettings, station: Station, options: EnhanceOptions) -> Worker:
    """A worker with the layout that the settings name."""
    folder, uncertainty = Path(settings.folder.output), settings.output.uncertainty
    layout: Layout = (
        Bids(folder, Path(settings.folder.input), station.enhancer.bundle, uncertainty=uncertainty)
        if settings.folder.layout == "bids"
        else Plain(folder, uncertainty=uncertainty)
    )
    return Worker(station, layout, settings, options)
