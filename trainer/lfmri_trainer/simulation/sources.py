"""Which files a subject's volumes were made from: a name alone does not say who it is.

Every BIDS study has a `sub-01`, and a brain mask may be mended between two simulations.

OUT/subjects/<subject>/sources.json    the SHA-256 of each file
"""

import json
from collections.abc import Iterable
from pathlib import Path

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import sha256_file, write_json
from lfmri_trainer.simulation.pairs import subject_path
from lfmri_trainer.subjects import Subject

SOURCES = "sources.json"


def check_sources(out: Path, subjects: Iterable[Subject]) -> None:
    """Check that what the folder holds of each subject was made from these files.

    A subject of a folder that was made before there was such a record is taken as it is.

    Raises:
        InputRefused: the folder holds another subject, or an earlier state of this one, under the same name.
    """
    for subject in subjects:
        record = _record(out, subject)
        if record.is_file() and _read(record) != hashes(subject):
            raise InputRefused(
                f"{record.parent} was made from other files than {_folder(subject)} holds; expected one person, "
                "unchanged, under one name: rename the folder of another person, use another --out, or delete this "
                "one and the pairs of it to make them again"
            )


def keep_sources(out: Path, subject: Subject) -> None:
    """Write down what a subject's volumes were made from, once they are there."""
    if not _record(out, subject).is_file():
        write_json(_record(out, subject), hashes(subject))


def made_with(record: Path, *, seed: int, sources: object) -> bool:
    """Whether what a record belongs to is there already, by the seed and the files that made it.

    Args:
        record: JSON with `seed` and `sources`; one without sources is taken as it is.
        seed: of now.
        sources: hashes of now.

    Raises:
        InputRefused: another seed or other files made it, or the record is not readable.
    """
    if not record.is_file():
        return False
    try:
        document = json.loads(record.read_text())
        found, made_from = document["seed"], document.get("sources", sources)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefused(f"{record}: {error!r}; expected a record with a seed: delete its folder") from None
    if found != seed:
        raise InputRefused(f"{record} was drawn with the seed {found}; expected {seed}: use it, or another --out")
    if made_from != sources:
        raise InputRefused(f"{record} was made from other files than these; expected them: delete its folder")
    return True


def _record(out: Path, subject: Subject) -> Path:
    return subject_path(out, subject.name, "brain").with_name(SOURCES)


def hashes(subject: Subject) -> dict[str, str]:
    """SHA-256 of each of a subject's files, by what it is."""
    return {kind: sha256_file(path) for kind, path in sorted(_files(subject).items())}


def _files(subject: Subject) -> dict[str, Path]:
    tissue = subject.tissue
    every = {
        **{kind: getattr(subject, kind) for kind in ("brain", "head", "mask")},
        **({kind: getattr(tissue, kind) for kind in ("gm", "wm", "csf")} if tissue else {}),
    }
    return {kind: path for kind, path in every.items() if path is not None}


def _folder(subject: Subject) -> Path:
    return next(iter(_files(subject).values())).parent


def _read(record: Path) -> object:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError) as error:
        raise InputRefused(f"{record}: {error}; expected what `lfmri simulate` wrote: use another --out") from None
