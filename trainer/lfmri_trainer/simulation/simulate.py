"""A folder of subjects to a folder of pairs: plan all draws, then apply them, subjects in parallel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.geometry import AXES, voxel_sizes
from lfmri_trainer.parallel import Counter, in_processes
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
from lfmri_trainer.simulation.sources import check_sources, keep_sources
from lfmri_trainer.subjects import Subject, find_subjects, open_volume, person_of
from lfmri_trainer.tissue import load_anatomy


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What to simulate.

    Attributes:
        preset: a name in PRESETS.
        draws: pairs of each subject.
        thick_axis: R, A, S, or random (drawn for each pair).
        fixed: tissue that keeps its intensity, WM or GM.
        validation: share of the subjects held out for validation, unless named.
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
    planned = plan(found, settings)
    out.mkdir(parents=True, exist_ok=True)
    check_sources(out, found)
    _add_to_table(out, planned)
    missing = [pair for pair in planned if not low_path(out, pair).is_file()]
    counter = Counter(len(planned) - len(missing), len(planned), progress)
    todo = [(s, [p for p in missing if p.subject == s.name]) for s in found]
    jobs = [partial(_simulate_subject, subject, pairs, out) for subject, pairs in todo if pairs]
    in_processes(jobs, workers=workers, ended=counter)
    return planned


def plan(subjects: Sequence[Subject], settings: SimulationSettings) -> list[PairParameters]:
    """Draw the parameters of all pairs; nothing is read but headers."""
    settings.check()
    splits = _splits([subject.name for subject in subjects], settings)
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


def _splits(names: list[str], settings: SimulationSettings) -> dict[str, str]:
    """Split by person, never by session, copy or slice: named ones first, then a seeded share of the rest."""
    person = {name: person_of(name) for name in names}
    people = sorted(set(person.values()))
    validation, test = (_named(asked, person) for asked in (settings.validation_subjects, settings.test_subjects))
    if validation & test:
        raise UsageError(f"{', '.join(sorted(validation & test))} named for validation and for test; choose one")
    rest = [name for name in people if name not in validation | test]
    held_out = 0 if validation else int(len(rest) * settings.validation)
    shuffled = [str(name) for name in np.random.default_rng(settings.seed).permutation(rest)]
    validation |= set(shuffled[:held_out])
    split = {name: "validation" if name in validation else "test" if name in test else "train" for name in people}
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


def _add_to_table(out: Path, planned: list[PairParameters]) -> None:
    """Add pairs to pairs.csv; where all of them are there already it stays untouched."""
    there = {pair.pair: pair for pair in read_pairs(out)} if (out / TABLE).is_file() else {}
    splits = {person_of(pair.subject): pair.split for pair in there.values()}
    known = len(there)
    for pair in planned:
        if there.setdefault(pair.pair, pair) != pair:
            raise InputRefused(
                f"{out / TABLE} already holds {pair.pair} drawn with other settings; expected the same settings to "
                "go on where it stopped: use them, or another --out"
            )
        person = person_of(pair.subject)
        if splits.setdefault(person, pair.split) != pair.split:
            raise InputRefused(
                f"{out / TABLE} already holds {person} in the split {splits[person]}, not {pair.split}; "
                "expected one split a person, or scores leak: hold out the same subjects, or use another --out"
            )
    if len(there) > known:
        write_pairs(out, there.values())


def _simulate_subject(subject: Subject, pairs: list[PairParameters], out: Path) -> int:
    anatomy = load_anatomy(subject)
    sides = {"brain": anatomy.image_brain, "head": anatomy.image_head, "mask": anatomy.mask.astype(np.uint8)}
    for kind, volume in sides.items():
        path = subject_path(out, subject.name, kind)
        if volume is not None and not path.is_file():
            write_volume(path, volume, anatomy.affine)
    keep_sources(out, subject)
    for pair in pairs:
        scan = simulate(anatomy, pair)
        write_volume(low_path(out, pair), scan.data, scan.affine)
    return len(pairs)
