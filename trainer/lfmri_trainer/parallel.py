"""Jobs in processes of their own."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lfmri_runtime.errors import TryAgainLater

Result = TypeVar("Result")


def in_processes(jobs: Iterable[Callable[[], Result]], *, workers: int, ended: Callable[[Result], None]) -> None:
    """Run jobs side by side.

    Args:
        jobs: that pickle sends to another process, as `functools.partial` of a module's function.
        workers: processes, spawned: a fork would inherit the threads of numerical libraries.
        ended: called here with each result, in the order in which the jobs end.

    Raises:
        TryAgainLater: a process was killed.
        whatever a job raises; the jobs that have not begun are given up then, as they are at an interrupt.
    """
    with ProcessPoolExecutor(max_workers=workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            for finished in as_completed(running):
                ended(finished.result())
        except BrokenProcessPool:
            raise TryAgainLater(
                f"one of {workers} processes was killed, most often for want of memory; what was finished is kept: run "
                "it again with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Counter:
    """Counts what is done, and reports it.

    Args:
        done: before the first.
        total: in all.
        progress: called with (done, total), now and at every count.
    """

    def __init__(self, done: int, total: int, progress: Callable[[int, int], None]) -> None:
        self.done, self.total, self.progress = done, total, progress
        progress(done, total)

    def __call__(self, count: int) -> None:
        """Count so many more."""
        self.done += count
        self.progress(self.done, self.total)
