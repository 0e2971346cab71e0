"""Choosing a back end: `auto` takes the fastest that passes the golden check on this machine, and remembers it."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lfmri_runtime.backends import BACKENDS, Step, open_backend, precisions
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.cache import cache_folder
from lfmri_runtime.contract import decode
from lfmri_runtime.errors import BackendMissing, BundleRefused, TryAgainLater, UsageError
from lfmri_runtime.files import write_json
from lfmri_runtime.golden import failures, has_ssim, measure_parity, read_golden
from lfmri_runtime.machine import identity
from lfmri_runtime.sampler import uniform_time_grid

#: A back end's name and a precision that it offers.
Candidate = tuple[str, str]

AUTO = "auto"
#: The stream that is timed: as many batches as run side by side at most, of slices of a middling size (assumed).
TRIAL_SHAPE = (2, 1, 96, 96)
TRIAL_BATCHES = 4
#: The fastest of this many rounds counts, after one that compiles.
TRIAL_ROUNDS = 2
#: A remembered choice is a kilobyte or two; more than this is not one.
MAX_BYTES = 1 << 20
#: Characters of a library's message that are kept.
MAX_REASON = 300


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one back end did.

    Attributes:
        backend: its name.
        precision: of its arithmetic.
        here: whether it could be opened.
        passed: the golden check.
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


@dataclass(frozen=True, eq=False)
class Choice:
    """An opened back end.

    Attributes:
        step: opened.
        notes: one line for each back end that is here and could not be taken, and for anything else than was asked.
        trials: what was tried, now or when the choice was made.
    """

    step: Step
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]


def choose(
    bundle: Bundle,
    *,
    backend: str = AUTO,
    precision: str | None = None,
    require: bool = False,
    threads: int = 0,
    cache: Path | None = None,
) -> Choice:
    """Open a back end that passes the golden check here.

    The first call on a machine tries and times what is there, some seconds; the choice is remembered in the cache
    until the bundle, a library, the CPU, the GPUs, an engine or the number of threads changes.

    Args:
        bundle: verified.
        backend: auto, or one of `backends.BACKENDS`.
        precision: float32, float16 or bfloat16; None takes any (auto) or the back end's default.
        require: refuse rather than take anything else than was asked.
        threads: of the network's arithmetic on a CPU; 0 takes all cores.
        cache: None takes the user's cache.

    Raises:
        UsageError: no such back end.
        BackendMissing: what is required is not usable here or fails the golden check, or nothing passes it.
    """
    if backend not in (AUTO, *BACKENDS):
        raise UsageError(f"--backend is {backend!r}; expected one of {AUTO}, {', '.join(BACKENDS)}")
    asked = [
        (name, offered)
        for name in (BACKENDS if backend == AUTO else (backend,))
        for offered in precisions(name, bundle)
        if precision in (None, offered)
    ]
    trials, step = _best(bundle, asked, threads=threads, cache=cache)
    if step is not None:
        return Choice(step, tuple(str(t) for t in trials if t.here and not t.passed), trials)
    wanted = " ".join(filter(None, (backend if backend != AUTO else None, precision)))
    reasons = "; ".join(map(str, trials)) or f"{backend} does not run this bundle in {precision}"
    if require or not wanted:
        subject = f"{wanted} does not pass" if wanted else "no back end passes"
        raise BackendMissing(f"{subject} here: {reasons}; lfmri doctor says what is usable")
    other = choose(bundle, threads=threads, cache=cache)
    note = f"asked for {wanted}, took {other.step.name} {other.step.precision}, since {reasons}"
    return Choice(other.step, (note, *other.notes), trials + other.trials)


def _best(
    bundle: Bundle, asked: list[Candidate], *, threads: int, cache: Path | None
) -> tuple[tuple[Trial, ...], Step | None]:
    """The trials of what is asked, and the best of it, opened; None where nothing passes."""
    key = _key(bundle, asked, threads=threads, cache=cache)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = (cache_folder() if cache is None else cache) / "choices" / f"{digest[:32]}.json"
    remembered = _recall(path, key)
    if remembered is not None:
        with suppress(BackendMissing, BundleRefused, TryAgainLater):  # what was here is gone: choose again
            return remembered, _open(bundle, remembered, threads=threads, cache=cache)
    trials = _try(bundle, asked, threads=threads, cache=cache)
    with suppress(OSError, TryAgainLater):  # a cache that cannot be written costs the trials again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "trials": [asdict(trial) for trial in trials]})
    return trials, _open(bundle, trials, threads=threads, cache=cache)


def _open(bundle: Bundle, trials: tuple[Trial, ...], *, threads: int, cache: Path | None) -> Step | None:
    passed = [trial for trial in trials if trial.passed]
    if not passed:
        return None
    best = min(passed, key=lambda trial: trial.seconds or 0.0)
    return open_backend(bundle, best.backend, precision=best.precision, threads=threads, cache=cache)


def _try(bundle: Bundle, asked: list[Candidate], *, threads: int, cache: Path | None) -> tuple[Trial, ...]:
    """Open and check every candidate; time those that pass, in turn, where there are several."""
    golden = read_golden(bundle)
    trials: list[Trial] = []
    steps: dict[int, Step] = {}
    for name, precision in asked:
        here, reason = False, ""
        try:
            step = open_backend(bundle, name, precision=precision, threads=threads, cache=cache)
            here = True
            failed = failures(measure_parity(step, golden))
            reason = f"does not pass the golden check: {failed[0]}" if failed else ""
            steps |= {} if failed else {len(trials): step}
        except BackendMissing as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a library raises, another back end may still do
            here, reason = True, " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__
        trials.append(
            Trial(backend=name, precision=precision, here=here, passed=not reason, seconds=None, reason=reason)
        )
    if len(steps) > 1:
        for index, seconds in _time(steps).items():
            trials[index] = replace(trials[index], seconds=seconds)
    for step in steps.values():
        step.close()
    return tuple(trials)


def _time(steps: dict[int, Step]) -> dict[int, float]:
    """Seconds for a slice and step of each, the least of TRIAL_ROUNDS rounds that take turns."""
    x_0 = np.zeros(TRIAL_SHAPE, np.float32)
    slices = TRIAL_BATCHES * len(x_0)
    rounds: dict[int, list[float]] = {index: [] for index in steps}
    for _ in range(1 + TRIAL_ROUNDS):
        for index, step in steps.items():
            start = time.perf_counter()
            for _result in step.flow(((x_0, x_0) for _ in range(TRIAL_BATCHES)), uniform_time_grid(1)):
                pass
            rounds[index].append((time.perf_counter() - start) / slices)
    return {index: round(min(seconds[1:]), 6) for index, seconds in rounds.items()}


def _key(bundle: Bundle, asked: list[Candidate], *, threads: int, cache: Path | None) -> dict[str, Any]:
    """What a choice holds for; engines are known by the names of their files, which carry their identity."""
    folders = ((cache_folder() if cache is None else cache) / "engines" / bundle.sha256[:16], bundle.path / "engines")
    return {
        "bundle": bundle.sha256,
        "asked": [list(candidate) for candidate in asked],
        "threads": threads,
        "ssim": has_ssim(),
        "engines": sorted(path.name for folder in folders for path in folder.glob("*.plan")),
        "machine": identity(),
    }


def _recall(path: Path, key: dict[str, Any]) -> tuple[Trial, ...] | None:
    """The trials of an earlier choice; None where there is none, or it is not whole, or not this machine's."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        document = json.loads(path.read_bytes())
        if document["key"] != key:
            return None
        trials: tuple[Trial, ...] = decode(tuple[Trial, ...], document["trials"], str(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, BundleRefused):
        return None
    return trials if any(trial.passed for trial in trials) else None
