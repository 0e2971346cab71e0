"""A folder of subjects to a folder of pairs: plan all draws, then apply them, subjects in parallel."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.geometry import AXES, voxel_sizes
from lfmri_trainer.parallel import Counter, in_processes
from lfmri_trainer.segmentation import one_thread
from lfmri_trainer.simulation.draws import PairParameters, draw_pair
from lfmri_trainer.simulation.pairs import (
    TABLE,
    low_path,
    read_pairs,
    subject_path,
    write_pairs,
    write_volume,
)
from lfmri_trainer.simulation.presets import PRESETS
from lfmri_trainer.simulation.scanner import simulate
from lfmri_trainer.simulation.sources import SOURCES, check_sources, keep_sources
from lfmri_trainer.subjects import Subject, find_subjects, open_volume, person_of
from lfmri_trainer.tissue import check_files, load_anatomy


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What to simulate.

    Attributes:
        preset: a name in PRESETS.
        draws: pairs of each subject.
        thick_axis: R, A, S, or random (drawn for each pair).
        fixed: tissue that keeps its intensity, WM or GM.
        validation: share of the people held out for validation, unless named; who has pairs there keeps their split.
        validation_subjects: names of the subjects held out for validation.
        test_subjects: names of the subjects that are never trained on.
        seed: of every draw.
    """

    preset: str
    draws: int = 1
    thick_axis: str = "S"
    fixed: str = "GM"
    validation: float = 0.2
    validation_subjects: tuple[str, ...] = ()
    test_subjects: tuple[str, ...] = ()
    seed: int = 0

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: naming the setting, what was found and what was expected.
        """
        for name, allowed in (("preset", sorted(PRESETS)), ("thick_axis", [*AXES, "random"]), ("fixed", ["WM", "GM"])):
            if getattr(self, name) not in allowed:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.draws < 1 or self.seed < 0 or not 0 <= self.validation <= 1:
            raise UsageError(
                f"draws {self.draws}, seed {self.seed}, validation {self.validation:g}; expected at least 1, at least "
                "0, and a share from 0 to 1"
            )


def simulate_folder(
    subjects: Path,
    out: Path,
    settings: SimulationSettings,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PairParameters]:
    """Simulate every pair that is not there yet.

    Args:
        subjects: folder in HCP naming, BIDS, or plain folders.
        out: folder of pairs, new or from an earlier call; further presets may be added to it.
        settings: what to simulate.
        workers: processes, a subject each.
        progress: called with (pairs done, pairs in all).

    Returns:
        the pairs of this call.

    Raises:
        UsageError: an unknown preset, or a named subject that is not in the folder.
        InputRefused: no subjects, an unusable subject, or `out` holds a pair of the same name drawn otherwise, or a
            subject of the same name made from other files.
    """
    found = find_subjects(subjects)
    for subject in found:
        check_files(subject)  # before the table has rows of a subject that has to be taken out
    there = read_pairs(out) if (out / TABLE).is_file() else []
    planned = plan(found, settings, there)
    out.mkdir(parents=True, exist_ok=True)
    check_sources(out, found)
    _add_to_table(out, there, planned)
    begun = {pair.subject for pair in there if low_path(out, pair).is_file()}
    missing = [pair for pair in planned if not low_path(out, pair).is_file()]
    counter = Counter(len(planned) - len(missing), len(planned), progress)
    todo = [(s, [p for p in missing if p.subject == s.name]) for s in found]
    jobs = [partial(_simulate_subject, s, pairs, out, begun=s.name in begun) for s, pairs in todo if pairs]
    in_processes(jobs, workers=workers, ended=counter)
    return planned


def plan(
    subjects: Sequence[Subject], settings: SimulationSettings, there: Sequence[PairParameters] = ()
) -> list[PairParameters]:
    """Draw the parameters of all pairs, beside the ones there; nothing is read but headers."""
    settings.check()
    splits = _splits([subject.name for subject in subjects], settings, _splits_there(there))
    return [
        draw_pair(
            preset=settings.preset,
            subject=subject.name,
            split=splits[subject.name],
            thick_axis=settings.thick_axis,
            fixed=settings.fixed,
            voxel_sizes=_voxel_sizes(subject),
            index=index,
            seed=settings.seed,
        )
        for subject in subjects
        for index in range(settings.draws)
    ]


def _splits_there(pairs: Iterable[PairParameters]) -> dict[str, str]:
    return {person_of(pair.subject): pair.split for pair in pairs}


def _splits(names: list[str], settings: SimulationSettings, there: Mapping[str, str]) -> dict[str, str]:
    """Split by person, never by session, copy or slice: named ones first, then a seeded share of the rest.

    A person of the rest who has a split there keeps it, so that subjects can be added and taken out; new ones take
    the places for validation that are left.
    """
    person = {name: person_of(name) for name in names}
    people = sorted(set(person.values()))
    validation, test = (_named(asked, person) for asked in (settings.validation_subjects, settings.test_subjects))
    if validation & test:
        raise UsageError(f"{', '.join(sorted(validation & test))} named for validation and for test; choose one")
    rest = [name for name in people if name not in validation | test]
    held_out = 0 if validation else int(len(rest) * settings.validation)
    places = max(0, held_out - sum(there.get(name) == "validation" for name in rest))
    shuffled = [str(name) for name in np.random.default_rng(settings.seed).permutation(rest)]
    validation |= set([name for name in shuffled if name not in there][:places])
    split = {name: "validation" if name in validation else "test" if name in test else "train" for name in people}
    split |= {name: there[name] for name in rest if name in there}
    return {name: split[person[name]] for name in names}


def _named(asked: tuple[str, ...], person: dict[str, str]) -> set[str]:
    """The people of subjects that are named with or without a session or copy."""
    known = {**person, **{name: name for name in person.values()}}
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise UsageError(f"no subject named {', '.join(unknown)}; expected some of {', '.join(person)}")
    return {known[name] for name in asked}


def _voxel_sizes(subject: Subject) -> tuple[float, float, float]:
    _, grid = open_volume(subject.brain or subject.head)  # type: ignore[arg-type]
    return voxel_sizes(grid.affine)


def _add_to_table(out: Path, there: Sequence[PairParameters], planned: Sequence[PairParameters]) -> None:
    """Add pairs to the ones in pairs.csv; where all of them are there already it stays untouched."""
    table = {pair.pair: pair for pair in there}
    splits = _splits_there(there)
    known = len(table)
    for pair in planned:
        person = person_of(pair.subject)
        if splits.setdefault(person, pair.split) != pair.split:
            raise InputRefused(
                f"{out / TABLE} already holds {person} in the split {splits[person]}, not {pair.split}; "
                "expected one split a person, or scores leak: hold out the same subjects, or use another --out"
            )
        if table.setdefault(pair.pair, pair) != pair:
            raise InputRefused(
                f"{out / TABLE} already holds {pair.pair} drawn with other settings; expected the same settings to "
                "go on where it stopped: use them, or another --out"
            )
    if len(table) > known:
        write_pairs(out, table.values())


@one_thread()
def _simulate_subject(subject: Subject, pairs: list[PairParameters], out: Path, *, begun: bool) -> int:
    """Write a subject's volumes, what they were made from, and then its scans.

    Volumes without a record are what an interrupt left, perhaps of files that were mended since, and are made again;
    unless scans of them are there (`begun`): then they are of a folder from before there was such a record.
    """
    known = begun or subject_path(out, subject.name, "brain").with_name(SOURCES).is_file()
    anatomy = load_anatomy(subject)
    sides = {"brain": anatomy.image_brain, "head": anatomy.image_head, "mask": anatomy.mask.astype(np.uint8)}
    for kind, volume in sides.items():
        path = subject_path(out, subject.name, kind)
        if known and path.is_file():
            continue
        if volume is None:
            path.unlink(missing_ok=True)
        else:
            write_volume(path, volume, anatomy.affine)
    keep_sources(out, subject)
    for pair in pairs:
        scan = simulate(anatomy, pair)
        write_volume(low_path(out, pair), scan.data, scan.affine)
    return len(pairs)
