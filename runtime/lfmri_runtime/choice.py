"""Choosing a back end: `auto` takes the fastest that passes the golden check on this machine, and remembers it."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lfmri_runtime import backends
from lfmri_runtime.backends import BACKENDS, Step, open_backend, precisions
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.cache import cache_folder, source_hash
from lfmri_runtime.contract import decode
from lfmri_runtime.errors import BackendMissing, BundleRefused, TryAgainLater, UsageError
from lfmri_runtime.files import write_json
from lfmri_runtime.golden import has_ssim
from lfmri_runtime.machine import closed_gpu_files, identity
from lfmri_runtime.trial import Candidate, Trial, try_all

AUTO = "auto"
#: What decides which libraries and which GPU a process finds; what `lfmri doctor` asks for shows here or in a version.
ENVIRONMENT = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
#: Written anew whenever a system package brings libraries, as CUDA's do, to where the loader already looks.
LOADER_CACHE = Path("/etc/ld.so.cache")
#: The code that runs the back ends: a refusal by an earlier one does not stay.
CODE = Path(backends.__file__).parent
#: A remembered choice is a kilobyte or two; more than this is not one.
MAX_BYTES = 1 << 20


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
    until the bundle, a library, the CPU, the GPUs, the right to open them, an engine, the number of threads, the
    libraries that the loader knows or ENVIRONMENT changes.

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
        TryAgainLater: the same, while a GPU was full or busy.
    """
    if backend not in (AUTO, *BACKENDS):
        raise UsageError(f"--backend is {backend!r}; expected one of {AUTO}, {', '.join(BACKENDS)}")
    asked = [
        (name, offered)
        for name in (BACKENDS if backend == AUTO else (backend,))
        for offered in precisions(name, bundle)
        if precision in (None, offered)
    ]
    trials, step, lasting = _best(bundle, asked, threads=threads, cache=cache)
    if step is not None:
        return Choice(step, tuple(str(t) for t in trials if t.here and not t.passed), trials)
    wanted = " ".join(filter(None, (backend if backend != AUTO else None, precision)))
    reasons = "; ".join(map(str, trials)) or f"{backend} does not run this bundle in {precision}"
    if require or not wanted:
        subject = f"{wanted} does not pass" if wanted else "no back end passes"
        kind = BackendMissing if lasting else TryAgainLater  # a service is started again for the latter
        raise kind(f"{subject} here: {reasons}; lfmri doctor says what is usable")
    other = choose(bundle, threads=threads, cache=cache)
    note = f"asked for {wanted}, took {other.step.name} {other.step.precision}, since {reasons}"
    return Choice(other.step, (note, *other.notes), trials + other.trials)


def _best(
    bundle: Bundle, asked: list[Candidate], *, threads: int, cache: Path | None
) -> tuple[tuple[Trial, ...], Step | None, bool]:
    """The trials of what is asked, the best of it, opened, or None where nothing passes, and whether that lasts."""
    key = _key(bundle, asked, threads=threads, cache=cache)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = (cache_folder() if cache is None else cache) / "choices" / f"{digest[:32]}.json"

    def opened(trial: Trial) -> Step:
        return open_backend(bundle, trial.backend, precision=trial.precision, threads=threads, cache=cache)

    remembered = _recall(path, key)
    if remembered is not None:
        with suppress(BackendMissing, BundleRefused, TryAgainLater):  # what was here is gone: choose again
            return remembered, opened(_fastest_first(remembered)[0]), True
    trials, lasting = try_all(bundle, asked, threads=threads, cache=cache)
    if lasting:  # a GPU that is full now may not be so next time, and an earlier choice stays
        with suppress(OSError, TryAgainLater):  # a cache that cannot be written costs the trials again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"key": key, "trials": [asdict(trial) for trial in trials]})
    for trial in _fastest_first(trials):
        try:
            return trials, opened(trial), lasting
        except (BackendMissing, BundleRefused, TryAgainLater) as error:  # a GPU has filled since its trial
            lasting = lasting and not isinstance(error, TryAgainLater)
            failed = replace(trial, passed=False, reason=str(error))
            trials = tuple(failed if other is trial else other for other in trials)
    return trials, None, lasting


def _fastest_first(trials: tuple[Trial, ...]) -> list[Trial]:
    return sorted((trial for trial in trials if trial.passed), key=lambda trial: trial.seconds or 0.0)


def _key(bundle: Bundle, asked: list[Candidate], *, threads: int, cache: Path | None) -> dict[str, Any]:
    """What a choice holds for."""
    folders = ((cache_folder() if cache is None else cache) / "engines" / bundle.sha256[:16], bundle.path / "engines")
    return {
        "bundle": bundle.sha256,
        "asked": [list(candidate) for candidate in asked],
        "threads": threads,
        "code": source_hash(CODE),
        "ssim": has_ssim(),
        "engines": [entry for folder in folders for entry in _engines(folder)],
        "loader": LOADER_CACHE.stat().st_mtime_ns if LOADER_CACHE.exists() else 0,
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "closed": closed_gpu_files(),  # to a user who may not open them there is no GPU
        "machine": identity(),
    }


def _engines(folder: Path) -> Iterator[list[Any]]:
    """Name, size and time of every engine and sidecar: one that is built again has other bytes under the same name."""
    for path in sorted((*folder.glob("*.plan"), *folder.glob("*.json"))):
        with suppress(OSError):  # it is being replaced
            status = path.stat()
            yield [path.name, status.st_size, status.st_mtime_ns]


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
