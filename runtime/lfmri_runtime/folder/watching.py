"""One look after the other at a folder that is ours; what two looks find unchanged is enhanced."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lfmri_runtime.console import interruptions
from lfmri_runtime.console.disk import shortage
from lfmri_runtime.console.waits import Refusals
from lfmri_runtime.errors import InputRefused, TryAgainLater
from lfmri_runtime.files import remove_leftovers, write_json
from lfmri_runtime.folder.items import Looks, Mark, mark_of
from lfmri_runtime.folder.layouts import is_taken, places, result_path
from lfmri_runtime.folder.spool import Spool
from lfmri_runtime.folder.work import FAILED, Result, Worker, document_of, reason_of


class Watcher:
    """Takes items from a spool to a worker and settles them.

    Args:
        spool: of IN.
        worker: enhances.
        least_free_mib: below this nothing is claimed.
    """

    def __init__(self, spool: Spool, worker: Worker, *, least_free_mib: int) -> None:
        self._spool = spool
        self._worker = worker
        self._least_free_mib = least_free_mib
        self._looks = Looks()
        self._delays: list[str] = []
        self._waits: dict[Mark | None, Refusals] = {}  # by mark: what is given back may get another name

    def look(self, stopping: Callable[[], bool] = lambda: False) -> list[Result]:
        """Take up what was claimed before, then whatever has not changed since the last look.

        Args:
            stopping: asked before each item.

        Raises:
            TryAgainLater: the machine could not finish an item now, its disk is full, or an item cannot be read or
                moved; such items lie in IN, the others are done.
            OSError: the folder cannot be read.
        """
        self._delays.clear()
        results: list[Result] = []
        broken = self._worker.station.trouble  # then nothing more is tried, and marked, by this process
        for claim in self._spool.claimed():
            if broken() is not None:
                break
            for place in self._places(claim.name):
                with suppress(TryAgainLater):  # hidden files do no harm
                    _remove_leftovers(place)
            results += self._settle(claim)
        for item, mark in self._looks.unchanged(self._spool.folder):
            short = shortage(self._worker.layout.folder, self._least_free_mib)
            if short is not None:
                self._delays.append(short)
            if stopping() or short is not None or broken() is not None:
                break
            if self._waits.get(mark, Refusals()).waiting():
                continue
            try:
                claimed = self._spool.claim(item, mark, lambda name: is_taken(self._worker.layout, name))
            except OSError as error:
                self._delays.append(f"an item cannot be moved ({error.strerror}); check its rights")
                continue
            if claimed is not None:
                results += self._settle(claimed)
        self._delays += [f"an item cannot be read ({why}); check its rights" for why in self._looks.unreadable]
        if self._delays:
            raise TryAgainLater(self._delays[0])
        return results

    def _settle(self, claim: Path) -> tuple[Result, ...]:
        """Enhance a claimed item and move it to where it belongs."""
        mark = mark_of(claim)
        try:
            try:
                results = self._work(claim)
                if mark is None or mark_of(claim) != mark:
                    raise TryAgainLater("a scan changed while it was enhanced; it is waited for again")
                self._report(claim, results)
            except TryAgainLater as error:
                self._delays.append(self._nameless(error, claim))
                self._undo(claim)
                self._waits.setdefault(mark, Refusals()).add()  # it may never fit
            else:
                self._waits.pop(mark, None)
                return results
        except FileNotFoundError:
            if os.path.lexists(claim):  # or somebody took it out of working/
                raise
        return ()

    def _work(self, claim: Path) -> tuple[Result, ...]:
        """Enhance an item, with a mark on it for as long as that takes; what ended too many processes is given up."""
        marks = self._spool.interruptions(claim)
        if interruptions.worn_out(marks):
            return (self._worker.fail("", interruptions.GIVEN_UP),)
        try:
            interruptions.begin(marks)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TryAgainLater(f"{marks.parent}: {error.strerror}; expected a folder that can be written") from None
        try:
            return self._worker.work(claim, claim.name)
        finally:
            if self._worker.station.trouble() is None:  # a device that failed takes the process down: its mark stays
                interruptions.end(marks)

    def _report(self, claim: Path, results: tuple[Result, ...]) -> None:
        """Write result.json where there is something to use, and settle the original."""
        failed = [result.reason for result in results if result.status == FAILED]
        if len(failed) < len(results):
            document = document_of(results, self._worker.station.enhancer.bundle.sha256)
            write_json(result_path(self._worker.layout, claim.name), document)
        if failed:
            self._spool.fail(claim, "\n".join(failed))
        else:
            self._spool.finish(claim)

    def _undo(self, claim: Path) -> None:
        """Remove what may be half an output, and let the item wait in IN once more."""
        for place in self._places(claim.name):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                with suppress(FileNotFoundError, NotADirectoryError):
                    place.unlink()
        self._spool.give_back(claim)

    def _nameless(self, error: TryAgainLater, claim: Path) -> str:
        text = reason_of(error, claim)
        for place in self._places(claim.name):
            text = text.replace(str(place), "an output")
        return text

    def _places(self, name: str) -> list[Path]:
        with suppress(InputRefused):
            return places(self._worker.layout, name)
        return []


def _remove_leftovers(place: Path) -> None:
    """Remove what killed runs left beside or in one of an item's places."""
    if not place.is_dir():
        remove_leftovers(place)
        return
    for leftover in place.rglob(".*.tmp.*"):
        leftover.unlink(missing_ok=True)
