"""A folder of label maps to a folder of subjects that `lfmri simulate` takes, in parallel."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.files import sha256_file, write_json
from lfmri_trainer.parallel import Counter, in_processes
from lfmri_trainer.randomness import named_generator
from lfmri_trainer.simulation.pairs import write_volume
from lfmri_trainer.simulation.sources import made_with
from lfmri_trainer.subjects import open_volume
from lfmri_trainer.synthesis.tissues import LABEL_LIMIT, TISSUES
from lfmri_trainer.synthesis.volumes import Labels, synthesise
from lfmri_trainer.tissue import MAX_VOXELS

ENDINGS = (".nii.gz", ".nii", ".mgz")
#: Voxels of air kept around the head.
MARGIN = 4
#: What a subject was made from.
RECORD = "synthesis.json"
#: Written last: a subject that has it is complete.
IMAGE = "T1w.nii.gz"


def synthesise_folder(
    maps: Path,
    out: Path,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Synthesise one subject from every label map, those that are not there yet.

    Args:
        maps: folder of label maps with the labels of `lfmri_trainer.synthesis.tissues`.
        out: folder of subjects; a plain folder each: head, brain mask, GM, WM and CSF.
        seed: of every draw; with a map's name it determines the subject.
        workers: processes, a subject each.
        progress: called with (subjects done, subjects in all).

    Returns:
        the names of the subjects.

    Raises:
        InputRefused: no label map, one that cannot be used, or a subject that another seed or map made; one without
            a record is taken as it is.
    """
    found = {_name(path): path for path in sorted(maps.glob("[!.]*")) if path.name.endswith(ENDINGS)}
    if not found:
        raise InputRefused(f"{maps}: no label map found; expected files that end in {', '.join(ENDINGS)}")
    missing = {name: path for name, path in found.items() if not _complete(out / name, path, seed)}
    counter = Counter(len(found) - len(missing), len(found), progress)
    jobs = [partial(synthesise_subject, path, out / name, seed=seed) for name, path in missing.items()]
    in_processes(jobs, workers=workers, ended=lambda _: counter(1))
    return list(found)


def synthesise_subject(path: Path, folder: Path, *, seed: int) -> None:
    """Synthesise one subject: in RAS, cropped to the head, on the label map's voxels."""
    labels, affine = read_labels(path)
    subject = synthesise(labels, rng=named_generator(seed, _name(path)))
    for kind in ("gm", "wm", "csf"):
        write_volume(folder / f"{kind.upper()}.nii.gz", getattr(subject, kind), affine)
    write_volume(folder / "brain_mask.nii.gz", subject.mask.astype(np.uint8), affine)
    write_json(folder / RECORD, {"seed": seed, "sources": sha256_file(path)})
    write_volume(folder / IMAGE, np.rint(subject.image).astype(np.int16), affine)


def read_labels(path: Path) -> tuple[Labels, NDArray[np.float64]]:
    """Read a label map in RAS and cut it to the head and a margin; returns the labels and their affine.

    Raises:
        InputRefused: unreadable, too large, empty, or with a label that is not known.
    """
    image, grid = open_volume(path)
    if np.prod(grid.shape, dtype=np.int64) > MAX_VOXELS:
        raise InputRefused(f"{path}: shape {grid.shape}; expected at most {MAX_VOXELS} voxels; crop it")
    try:
        data = np.asarray(nib.as_closest_canonical(image).dataobj)  # type: ignore[no-untyped-call]
    except (OSError, EOFError, ValueError) as error:
        raise InputRefused(f"{path}: not readable ({error}); expected a label map; copy it again") from error
    known = {label for tissue in TISSUES.values() for label in tissue.labels}
    unknown = sorted(set(np.unique(data).tolist()) - known)
    if unknown:
        raise InputRefused(
            f"{path}: unknown labels {', '.join(f'{label:g}' for label in unknown[:8])}; expected FreeSurfer's "
            f"inside the brain and 502 to {LABEL_LIMIT - 1} outside it: convert or merge them"
        )
    filled = np.argwhere(data)
    if not filled.size:
        raise InputRefused(f"{path}: no label but 0; expected the label map of a head")
    first = np.maximum(filled.min(axis=0) - MARGIN, 0)
    last = filled.max(axis=0) + MARGIN + 1
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return data[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].astype(np.int16), affine


def _complete(folder: Path, path: Path, seed: int) -> bool:
    record = folder / RECORD
    if not (folder / IMAGE).is_file():
        return False
    return not record.is_file() or made_with(record, seed=seed, sources=sha256_file(path))


def _name(path: Path) -> str:
    return next(path.name.removesuffix(end) for end in ENDINGS if path.name.endswith(end))
