"""Cold start: a fresh process that opens a back end and enhances its first scan, with its own peak of memory."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.machine import resident_mib

#: A function at the top of a module, or a `functools.partial` of one, since it goes to a new process.
Opener = Callable[[], Enhancer]
Scan = tuple[NDArray[np.float32], NDArray[np.float64]]
#: A process that is not ready after this, seconds, is taken for hung.
PATIENCE = 1800.0


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What a fresh process took.

    Attributes:
        open_seconds: from the process's start until the back end is open, imports included.
        first_seconds: of the first scan with one Euler step, set-up of its shapes included.
        peak_mib: resident memory of the process at most.
        gpu_mib: GPU memory that closing the back end gave back, the engine's and its buffers'; None where it is not
            known.
    """

    open_seconds: float
    first_seconds: float
    peak_mib: float
    gpu_mib: float | None


def open_enhancer(path: Path, backend: str, precision: str | None, *, threads: int = 0) -> Enhancer:
    """An enhancer on a back end as it is, without the golden check.

    Args:
        path: of the bundle.
        backend: one of `backends.BACKENDS`.
        precision: None takes the back end's default.
        threads: of the network's arithmetic; 0 takes all cores.
    """
    bundle = open_bundle(path)
    return Enhancer(bundle, step=open_backend(bundle, backend, precision=precision, threads=threads))


def cold_start(opener: Opener, scan: Scan) -> ColdStart:
    """Start a process, open a back end there, and enhance one scan, (data, affine).

    Raises:
        TryAgainLater: the process ended or hung without a result.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(there, opener, scan), daemon=True)
    started = time.time()
    process.start()
    there.close()
    try:
        if not here.poll(PATIENCE):
            raise TryAgainLater(f"a fresh process gave no result within {PATIENCE:.0f} s; close other programs")
        opened_at, first, peak, gpu = here.recv()
    except EOFError:
        raise TryAgainLater("a fresh process ended without a result; run with fewer threads or more memory") from None
    finally:
        process.kill()
        process.join()
        here.close()
    return ColdStart(open_seconds=opened_at - started, first_seconds=first, peak_mib=peak, gpu_mib=gpu)


def _measure(pipe: Connection, opener: Opener, scan: Scan) -> None:
    """What the fresh process does."""
    enhancer = opener()
    opened_at = time.time()
    start = time.perf_counter()
    enhancer.enhance(*scan, steps=1)
    seconds, peak = time.perf_counter() - start, resident_mib(peak=True)
    pipe.send((opened_at, seconds, peak, _given_back(enhancer.step)))
    pipe.close()


def _given_back(step: Step) -> float | None:
    """GPU memory, MiB, that closing a back end frees."""
    if step.gpu is None:
        return None
    before = step.gpu.free_mib()
    step.close()
    return step.gpu.free_mib() - before
