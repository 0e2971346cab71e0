"""`lfmri benchmark`: make every method ready, score it on every set, write the report."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.contract import Contract
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.lpips import Lpips
from lfmri_trainer.baselines import METHODS
from lfmri_trainer.baselines.fitted import Fitted
from lfmri_trainer.baselines.interpolation import Interpolation
from lfmri_trainer.baselines.method import Context, Float32Array, Method, Progress
from lfmri_trainer.baselines.pairs import TrainingPairs
from lfmri_trainer.benchmark.cases import Case, TestSet, choose_sets, open_cases
from lfmri_trainer.benchmark.results import Result, result_of
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.subjects import same_people
from lfmri_trainer.weights import stretches

RESULTS = "results"
FITTED = "fitted"
#: The set whose preset no method may have learned from.
OUTSIDE = "OOD"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """What is compared on what.

    Attributes:
        methods: keys of METHODS; interpolation is always among them.
        steps: numbers of Euler steps of the bundle.
        sets: (name, preset, slices) of each test set.
        fitted: folder of fitted methods; None keeps them in the output folder.
        changes: settings by method key, as text.
        threads: of all arithmetic; 0 takes all cores.
    """

    methods: tuple[str, ...]
    steps: tuple[int, ...]
    sets: tuple[tuple[str, str, int], ...]
    fitted: Path | None = None
    changes: Mapping[str, Mapping[str, str]]
    threads: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """One scored pair: its row of pairs.csv, its case's identity, and the reference of its middle slice."""

    pair: PairParameters
    identity: str
    picture: Float32Array


@dataclass(frozen=True, eq=False, kw_only=True)
class SetResults:
    """A set's scores.

    Attributes:
        test_set: which it is.
        scans: in order.
        results: by method key, one for each scan.
    """

    test_set: TestSet
    scans: tuple[Scan, ...]
    results: Mapping[str, tuple[Result, ...]]


def every_method(*, fitted: bool) -> tuple[str, ...]:
    """Keys of METHODS; those that need a fit only where `fitted` is set."""
    return tuple(key for key, kind in METHODS.items() if fitted or not kind.fitted)


def score_methods(
    pairs: Path,
    out: Path,
    bundle: Bundle,
    settings: BenchmarkSettings,
    *,
    resume: bool,
    progress: Callable[[str], AbstractContextManager[Progress]],
) -> tuple[list[Method], list[SetResults]]:
    """Fit what has to be fitted and score everything; results of an earlier call with `resume` are taken over.

    Raises:
        UsageError: unknown methods or settings, or an output folder that already holds a benchmark.
        InputRefused: pairs that cannot be used, a test subject that a method was trained on, or an OOD preset that
            the bundle was.
    """
    if not resume and (out / RESULTS).exists():
        raise UsageError(f"{out} already holds a benchmark; go on with --resume, or choose another --out")
    unknown = sorted({*settings.methods, *settings.changes} - set(METHODS))
    if unknown:
        raise UsageError(f"no method named {', '.join(unknown)}; expected some of {', '.join(METHODS)}")
    idle = sorted(key for key in settings.changes if key not in settings.methods or not METHODS[key].fitted)
    if idle:
        raise UsageError(f"--fit {idle[0]} would change nothing; expected a method of --methods that is fitted")
    rows = read_pairs(pairs)
    sets = choose_sets(rows, settings.sets)
    learnable = _without(OUTSIDE, sets, rows, bundle.contract)
    tested = {pair.subject for test_set in sets for pair in test_set.pairs}
    contract = bundle.contract
    _check_unseen(tested, contract.training.get("training_subjects", ()), f"{contract.name} was trained on")
    calibrated = [subject for calibration in contract.uncertainty for subject in calibration.subjects]
    _check_unseen(tested, calibrated, f"the uncertainty of {contract.name} was calibrated on")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    context = Context(
        bundle=bundle,
        steps=settings.steps,
        threads=settings.threads,
        pairs=lambda: TrainingPairs.open(pairs, learnable, bundle.contract.processing),
        fitted=out / FITTED if settings.fitted is None else settings.fitted,
        changes=settings.changes,
        progress=progress,
    )
    chosen = {Interpolation.key, *settings.methods}
    methods = [method for key, kind in METHODS.items() if key in chosen for method in kind.prepare(context)]
    for method in methods:
        if isinstance(method, Fitted) and method.about is not None:
            _check_unseen(tested, method.about.subjects, f"{method.key} was fitted on")
    with progress("scoring") as scored:
        return methods, _score(pairs, out, methods, sets, bundle, settings, scored)


def _score(
    pairs: Path,
    out: Path,
    methods: Sequence[Method],
    sets: Sequence[TestSet],
    bundle: Bundle,
    settings: BenchmarkSettings,
    progress: Progress,
) -> list[SetResults]:
    processing, lpips = bundle.contract.processing, Lpips(threads=settings.threads)
    total = len(methods) * sum(len(test_set.pairs) for test_set in sets)
    done = 0
    every = []
    for test_set in sets:
        scans = []
        results: dict[str, list[Result]] = {method.key: [] for method in methods}
        for case in open_cases(pairs, test_set, processing):
            for method in methods:
                path = out / RESULTS / test_set.name / method.key / f"{case.pair.pair}.npz"
                result = result_of(method, case, path, limit=processing.high_field.limit, lpips=lpips)
                results[method.key].append(result)
                done += 1
                progress(done, total)
            scans.append(_scan(case))
        kept = {key: tuple(values) for key, values in results.items()}
        every.append(SetResults(test_set=test_set, scans=tuple(scans), results=kept))
    return every


def _scan(case: Case) -> Scan:
    return Scan(pair=case.pair, identity=case.identity, picture=case.reference[len(case.reference) // 2])


def _without(
    outside: str, sets: Sequence[TestSet], rows: Sequence[PairParameters], contract: Contract
) -> list[PairParameters]:
    """Leave out of distribution what is called so: no baseline is fitted on that preset, and no bundle was.

    Raises:
        InputRefused: the bundle learned from it.
    """
    presets = {test_set.preset for test_set in sets if test_set.name == outside}
    known = sorted(presets & {name for stretch in stretches(contract.training) for name in stretch.get("presets", ())})
    if known:
        raise InputRefused(
            f"{contract.name} learned from the preset {known[0]}; expected one that is new to it as {outside}: name "
            "another with --ood"
        )
    return [row for row in rows if row.preset not in presets]


def _check_unseen(tested: set[str], subjects: Sequence[str], said: str) -> None:
    seen = same_people(tested, subjects)
    if seen:
        raise InputRefused(
            f"{said} {', '.join(seen)}, which the test set holds; expected unseen subjects: simulate with other "
            "--test-subject; other people who only bear these names need others"
        )
