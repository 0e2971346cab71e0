"""Trying back ends on this machine: the golden check, and the time of those that pass."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.errors import BackendMissing, LfmriError, TryAgainLater
from lfmri_runtime.golden import failures, measure_parity, read_golden
from lfmri_runtime.sampler import uniform_time_grid

#: A back end's name and a precision that it offers.
Candidate = tuple[str, str]

#: The stream that is timed: as many batches as run side by side at most, of slices of a middling size (assumed).
TRIAL_SHAPE = (2, 1, 96, 96)
TRIAL_BATCHES = 4
#: The fastest of this many rounds counts, after one that compiles.
TRIAL_ROUNDS = 2
#: Characters of a library's message that are kept.
MAX_REASON = 300


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one back end did.

    Attributes:
        backend: its name.
        precision: of its arithmetic.
        here: whether it could be opened.
        passed: the golden check, and the timing where there was one.
        seconds: for a slice and step; None where there was no other to compare with, or it did not pass.
        reason: why it was not taken; empty where speed alone decided.
    """

    backend: str
    precision: str
    here: bool
    passed: bool
    seconds: float | None
    reason: str

    def __str__(self) -> str:
        """As a note says it."""
        return f"{self.backend} ({self.precision}): {self.reason}"


@dataclass(frozen=True)
class Failure:
    """Why a trial failed; without the error itself, whose frames would hold what is on the GPU.

    Attributes:
        reason: one line.
        momentary: a GPU was full or busy, and may do better soon.
    """

    reason: str
    momentary: bool

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Give our own messages whole, a library's as one short line."""
        text = str(error) if isinstance(error, LfmriError) else " ".join(f"{error}".split())[:MAX_REASON]
        return cls(text or type(error).__name__, isinstance(error, TryAgainLater))


def try_all(
    bundle: Bundle, asked: list[Candidate], *, threads: int, cache: Path | None
) -> tuple[tuple[Trial, ...], bool]:
    """Open and check every candidate; time those that pass, in turn, where there are several.

    Returns:
        a trial of each, and whether they hold for longer than now: that none failed since a GPU was full or busy.
    """
    golden = read_golden(bundle)
    trials: list[Trial] = []
    steps: dict[int, Step] = {}
    lasting = True
    for name, precision in asked:
        step: Step | None = None
        failure: Failure | None = None
        here = True
        try:
            step = open_backend(bundle, name, precision=precision, threads=threads, cache=cache)
            failed = failures(measure_parity(step, golden))
            if failed:
                failure = Failure(f"does not pass the golden check: {failed[0]}", momentary=False)
        except Exception as error:  # noqa: BLE001 - whatever a library raises, another back end may still do
            here = step is not None or not isinstance(error, BackendMissing)
            failure = Failure.of(error)
        if step is not None and failure is None:
            steps[len(trials)] = step
        elif step is not None:  # its memory is another's
            step.close()
        lasting = lasting and not (failure and failure.momentary)
        reason = failure.reason if failure else ""
        trials.append(
            Trial(backend=name, precision=precision, here=here, passed=not failure, seconds=None, reason=reason)
        )
    for index, outcome in _time(steps).items() if len(steps) > 1 else ():
        if isinstance(outcome, Failure):
            trials[index] = replace(trials[index], passed=False, reason=outcome.reason)
            lasting = lasting and not outcome.momentary
        else:
            trials[index] = replace(trials[index], seconds=outcome)
    for step in steps.values():
        step.close()
    return tuple(trials), lasting


def _time(steps: dict[int, Step]) -> dict[int, float | Failure]:
    """Seconds for a slice and step of each, the least of TRIAL_ROUNDS rounds that take turns; or why there are none."""
    x_0 = np.zeros(TRIAL_SHAPE, np.float32)
    slices = TRIAL_BATCHES * len(x_0)
    rounds: dict[int, list[float]] = {index: [] for index in steps}
    failed: dict[int, Failure] = {}
    for _ in range(1 + TRIAL_ROUNDS):
        for index, step in steps.items():
            if index in failed:
                continue
            start = time.perf_counter()
            try:
                for _result in step.flow(((x_0, x_0) for _ in range(TRIAL_BATCHES)), uniform_time_grid(1)):
                    pass
            except Exception as error:  # noqa: BLE001 - as above
                failed[index] = Failure.of(error)
            rounds[index].append((time.perf_counter() - start) / slices)
    return {index: failed.get(index) or round(min(seconds[1:]), 6) for index, seconds in rounds.items()}
