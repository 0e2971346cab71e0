"""Varied copies of subjects: bent, mirrored, their contrast and field changed, air put round them; by TorchIO.

Few heads are a small world. A copy is another head for the network: its folds lie elsewhere, its grey and white matter
differ by another amount, it fills another share of its volume. Image, mask and tissue maps are bent together, so a copy
is simulated with maps as exact as its original's. Parameters are drawn here, and applied by TorchIO's transforms
(Perez-Garcia et al., Computer Methods and Programs in Biomedicine 2021); their ranges are assumed.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio
from numpy.typing import NDArray

from lfmri_runtime.files import write_json
from lfmri_trainer.parallel import Counter, in_processes
from lfmri_trainer.randomness import named_generator
from lfmri_trainer.simulation.pairs import write_volume
from lfmri_trainer.simulation.sources import hashes, made_with
from lfmri_trainer.subjects import Subject, find_subjects
from lfmri_trainer.tissue import Anatomy, load_anatomy

#: Written last: a copy that has it is complete.
RECORD = "variation.json"
#: Folder inside a copy's own where its volumes are written: half a copy would pass for a subject.
UNFINISHED = "unfinished"
#: Control points of the bending along each axis, and the farthest that one is moved, mm; half of the points' distance
#: at most, or the volume would fold.
CONTROL_POINTS = 7
DISPLACEMENT = 4.0
#: Control points that lie outside the volume along an axis, all but one cell.
OUTSIDE = 3
#: Borders of control points that stay where they are, so that nothing is bent out of the volume.
LOCKED = 2
#: Order of the field's polynomial; the number of its coefficients, the constant first; and their largest magnitude.
FIELD_ORDER = 3
FIELD_TERMS = 20
FIELD = 0.15
#: Largest magnitude of the natural logarithm of the contrast's exponent.
LOG_GAMMA = 0.15
#: Share of the copies that air is put round, and the most on a side, voxels.
AIR_SHARE = 0.5
AIR = 40
#: What the 99.9th percentile of the brain becomes: integers are fine enough then, and whole heads fit into 16 bits.
BRIGHT = 1000.0


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What makes a copy of a subject.

    Attributes:
        mirrored: left and right change sides.
        displacement: of the control points, mm, (CONTROL_POINTS, CONTROL_POINTS, CONTROL_POINTS, 3).
        field: coefficients of the field's logarithm, in the order of TorchIO's polynomial.
        gamma: exponent of the intensities, as shares of the brain's 99.9th percentile.
        air: voxels on either side of each axis: R low, R high, A low, ...
    """

    mirrored: bool
    displacement: NDArray[np.float64]
    field: tuple[float, ...]
    gamma: float
    air: tuple[int, ...]


def draw_variation(rng: np.random.Generator) -> Variation:
    """Draw what makes a copy."""
    displacement = np.zeros((CONTROL_POINTS,) * 3 + (3,))
    inner = displacement[(slice(LOCKED, -LOCKED),) * 3]
    inner[...] = rng.uniform(-DISPLACEMENT, DISPLACEMENT, inner.shape)
    return Variation(
        mirrored=bool(rng.random() < 0.5),
        displacement=displacement,
        field=(0.0, *rng.uniform(-FIELD, FIELD, FIELD_TERMS - 1).tolist()),
        gamma=float(np.exp(rng.uniform(-LOG_GAMMA, LOG_GAMMA))),
        air=tuple(rng.integers(0, AIR + 1, 6).tolist()) if rng.random() < AIR_SHARE else (0,) * 6,
    )


def vary(anatomy: Anatomy, variation: Variation) -> dict[str, NDArray[np.generic]]:
    """Make the copy's volumes, on a grid of the subject's voxels.

    Args:
        anatomy: the subject.
        variation: what to do.

    Returns:
        by name: T1w_brain (and T1w where there is a head), int16, with BRIGHT where the brain is brightest; brain_mask,
        uint8; GM, WM and CSF in [0, 1], float32.
    """
    bright = float(np.percentile(anatomy.image_brain[anatomy.mask], 99.9))
    images = {"T1w_brain": anatomy.image_brain, "T1w": anatomy.image_head}
    subject = torchio.Subject(
        {name: _image(torchio.ScalarImage, i / bright, anatomy) for name, i in images.items() if i is not None}
        | {name: _image(torchio.ScalarImage, getattr(anatomy, name.lower()), anatomy) for name in ("GM", "WM", "CSF")}
        | {"brain_mask": _image(torchio.LabelMap, anatomy.mask.astype(np.float32), anatomy)}
    )
    sides = np.array(anatomy.mask.shape) * anatomy.voxel_size
    farthest = min(DISPLACEMENT, 0.5 * float(sides.min()) / (CONTROL_POINTS - OUTSIDE))
    displacement = variation.displacement.clip(-farthest, farthest)
    steps = _transforms(replace(variation, displacement=displacement), [name for name in images if name in subject])
    changed = torchio.Compose(steps)(subject)
    volumes = {name: image.data[0].numpy() for name, image in changed.get_images_dict(intensity_only=False).items()}
    inside = volumes["brain_mask"] > 0.5
    volumes["T1w_brain"] = np.where(inside, volumes["T1w_brain"], 0)
    made: dict[str, NDArray[np.generic]] = {"brain_mask": inside.astype(np.uint8)}
    for name, volume in volumes.items():
        if name in images:
            made[name] = np.rint(volume * BRIGHT).clip(0, np.iinfo(np.int16).max).astype(np.int16)
        elif name != "brain_mask":
            made[name] = np.where(inside, volume, 0).clip(0, 1).astype(np.float32)
    return made


def vary_folder(
    subjects: Path,
    out: Path,
    *,
    copies: int = 1,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Make copies of every subject, those that are not there yet.

    Args:
        subjects: folder in HCP naming, BIDS, or plain folders.
        out: folder of the copies, a plain folder each, named `<subject>_copy-<number>`: `person_of` knows whose it is.
        copies: of each subject.
        seed: of every draw; with the copy's name it determines the copy.
        workers: processes, a copy each.
        progress: called with (copies done, copies in all).

    Returns:
        the names of the copies.

    Raises:
        InputRefused: no subjects, one that cannot be used, or a copy that another seed or other files made.
    """
    planned = {f"{s.name}_copy-{number}": s for s in find_subjects(subjects) for number in range(1, copies + 1)}
    missing = {
        name: subject
        for name, subject in planned.items()
        if not made_with(out / name / RECORD, seed=seed, sources=hashes(subject))
    }
    counter = Counter(len(planned) - len(missing), len(planned), progress)
    jobs = [partial(_vary_subject, subject, out / name, seed=seed) for name, subject in missing.items()]
    in_processes(jobs, workers=workers, ended=lambda _: counter(1))
    return list(planned)


def _vary_subject(subject: Subject, folder: Path, *, seed: int) -> None:
    """Write one copy, and last what made it."""
    anatomy = load_anatomy(subject)
    variation = draw_variation(named_generator(seed, folder.name))
    affine = anatomy.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.asarray(variation.air[::2])
    volumes = {f"{name}.nii.gz": volume for name, volume in vary(anatomy, variation).items()}
    for name, volume in volumes.items():
        write_volume(folder / UNFINISHED / name, volume, affine)
    # Images move last: a folder without one is no subject.
    for name in sorted(volumes, key=lambda name: name.startswith("T1w")):
        (folder / UNFINISHED / name).replace(folder / name)
    shutil.rmtree(folder / UNFINISHED)
    small = {"gamma": variation.gamma, "mirrored": variation.mirrored, "air": variation.air, "field": variation.field}
    made_from = {"subject": subject.name, "seed": seed, "sources": hashes(subject), "torchio": torchio.__version__}
    write_json(folder / RECORD, {**made_from, **small})


def _image(kind: Any, data: NDArray[np.float32], anatomy: Anatomy) -> Any:
    return kind(tensor=torch.from_numpy(data.astype(np.float32))[None], affine=anatomy.affine)


def _transforms(variation: Variation, images: list[str]) -> list[Any]:
    """The steps, in their order: shape for everything, intensities for the images, and air."""
    bend = partial(
        torchio.ElasticDeformation, variation.displacement, (float(np.abs(variation.displacement).max()),) * 3
    )
    return [
        *([torchio.Flip(0)] if variation.mirrored else []),  # type: ignore[no-untyped-call]
        # Linear interpolation would blur what the network is to learn as sharp; the maps may be blurred.
        bend(image_interpolation="bspline", include=images),
        bend(exclude=images),
        # A spline overshoots below 0 at the edge of a stripped brain, and a power of that is none.
        torchio.Clamp(out_min=0),
        torchio.BiasField(list(variation.field), FIELD_ORDER, include=images),
        torchio.Gamma(variation.gamma, include=images),
        torchio.Pad(variation.air),
    ]
