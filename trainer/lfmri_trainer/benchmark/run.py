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
from lfmri_trainer.baselines.interpolation import Interpolation
from lfmri_trainer.baselines.method import Context, Float32Array, KnowsNames, Method, Progress
from lfmri_trainer.baselines.pairs import TrainingPairs
from lfmri_trainer.benchmark.cases import Case, TestSet, choose_sets, open_cases
from lfmri_trainer.benchmark.results import Result, result_of
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.subjects import same_people
from lfmri_trainer.weights import Learned, stretches

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
        made: commit and machine, kept with every result.
    """

    methods: tuple[str, ...]
    steps: tuple[int, ...]
    sets: tuple[tuple[str, str, int], ...]
    fitted: Path | None = None
    changes: Mapping[str, Mapping[str, str]]
    threads: int = 0
    made: str = ""


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


def spread(scans: Sequence[Scan], most: int) -> list[Scan]:
    """At most so many scans, evenly spread over a set's list, which goes by subject."""
    count = min(most, len(scans))
    return [scans[n * len(scans) // count] for n in range(count)]


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
        InputRefused: pairs that cannot be used, or a test subject or an OOD preset that a method was trained on.
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
    contract = bundle.contract
    tested = _tested(sets)
    tested.refuse(_model(contract), contract.name)
    calibrated = [subject for calibration in contract.uncertainty for subject in calibration.subjects]
    tested.refuse(Learned(subjects=tuple(calibrated)), f"the uncertainty of {contract.name}")
    learnable = [row for row in rows if row.preset not in tested.presets]
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
        refuse_tested=tested.refuse,
    )
    chosen = {Interpolation.key, *settings.methods}
    methods = [method for key, kind in METHODS.items() if key in chosen for method in kind.prepare(context)]
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
                limit = processing.high_field.limit
                result = result_of(method, case, path, limit=limit, lpips=lpips, made=settings.made)
                results[method.key].append(result)
                done += 1
                progress(done, total)
            scans.append(_scan(case))
        kept = {key: tuple(values) for key, values in results.items()}
        every.append(SetResults(test_set=test_set, scans=tuple(scans), results=kept))
    return every


def _scan(case: Case) -> Scan:
    return Scan(pair=case.pair, identity=case.identity, picture=case.reference[len(case.reference) // 2])


@dataclass(frozen=True)
class _Tested:
    """Who is tested, and on which presets as out of distribution: nobody may have learned from them."""

    subjects: frozenset[str]
    presets: frozenset[str]

    def refuse(self, known: KnowsNames, what: str) -> None:
        seen = same_people(self.subjects, known.subjects)
        if seen:
            raise InputRefused(
                f"{what} learned from {', '.join(seen)}, which the test set holds; expected unseen subjects: simulate "
                "with other --test-subject; other people who only bear these names need others"
            )
        presets = sorted(self.presets.intersection(known.presets))
        if presets:
            raise InputRefused(
                f"{what} learned from the preset {presets[0]}; expected one that is new to it as {OUTSIDE}: name "
                "another with --ood"
            )


def _tested(sets: Sequence[TestSet]) -> _Tested:
    return _Tested(
        frozenset(pair.subject for test_set in sets for pair in test_set.pairs),
        frozenset(test_set.preset for test_set in sets if test_set.name == OUTSIDE),
    )


def _model(contract: Contract) -> Learned:
    """What a bundle's model learned from, in all its stretches."""
    return Learned(
        subjects=tuple(contract.training.get("training_subjects", ())),
        presets=tuple(name for stretch in stretches(contract.training) for name in stretch.get("presets", ())),
    )
