"""A thread that does one round after the other until it is stopped; its death has a reason."""

import threading
from collections.abc import Callable

from lfmri_runtime.console.journal import Journal
from lfmri_runtime.errors import TryAgainLater

#: Between two looks at the spool.
LOOK_SECONDS = 0.1
#: After a round that a full disk or the like has ended.
PAUSE_SECONDS = 5.0


class Loop:
    """Runs `round_` again and again.

    What passes by itself (a full disk) is told to the journal once and tried again. Anything else ends the thread, and
    `trouble` says so: whoever supervises the process starts it again, and the spool is taken up.

    Args:
        name: of the thread.
        round_: one round; asks `stopping` where it is long.
        journal: gets the reason when a round ends early.
        pause: between two rounds, seconds.
    """

    def __init__(self, name: str, round_: Callable[[], None], journal: Journal, *, pause: float = LOOK_SECONDS) -> None:
        self.name = name
        self._pause = pause
        self.stopping = threading.Event()
        self._round = round_
        self._journal = journal
        self._reason: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the current round is over."""
        self.stopping.set()
        self._thread.join()

    def trouble(self) -> str | None:
        """Why the thread is dead; None while it lives or when it was told to stop."""
        if self._thread.is_alive() or self.stopping.is_set():
            return None
        return f"the thread {self.name} has died ({self._reason})"

    def _run(self) -> None:
        pause = self._pause
        told = ""
        while not self.stopping.wait(pause):
            pause = self._pause
            try:
                self._round()
                told = ""
            except (OSError, TryAgainLater) as error:
                pause = PAUSE_SECONDS
                if str(error) != told:
                    told = str(error)
                    self._journal.tell("delayed", surface="dicom", reason=told)
            except Exception as error:
                self._reason = type(error).__name__
                raise
