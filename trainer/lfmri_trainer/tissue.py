"""Load a subject's T1w with its brain mask and soft tissue maps, making what is not given.

Tissue maps that are not given are made by `lfmri_trainer.segmentation`.

The low-field simulator wants a bias-corrected T1w. Where the maps are computed, the images that come back are
therefore the corrected ones; where they are given, the images are taken as corrected already and left as they are.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lfmri_runtime.errors import InputRefused
from lfmri_trainer.segmentation import bias_field, classify
from lfmri_trainer.subjects import Subject, TissuePaths, open_volume

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

#: More voxels than any whole-head T1w has, and 0.5 GiB a volume in float32.
MAX_VOXELS = 512**3
#: Full scales in which tissue maps come: a probability, per cent, 8-bit; a spline may overshoot by 10 %.
MAP_SCALES = ((1.1, 1.0), (100.5, 100.0), (255.5, 255.0))


@dataclass(frozen=True)
class Anatomy:
    """A subject's volumes on one RAS grid, each of shape (x, y, z).

    Attributes:
        image_brain: Skull-stripped T1w, arbitrary units, 0 outside the mask.
        image_head: Whole-head T1w in its own units, or None where there is no head.
        mask: The brain.
        gm: Grey matter, in [0, 1], 0 outside the mask.
        wm: White matter, likewise.
        csf: Cerebrospinal fluid, likewise.
        affine: (4, 4), from voxels to mm.
        voxel_size: Along x, y, z in mm.
        maps_source: Whether gm and wm came with the subject or were made here; "computed" also says that both
            images are bias-corrected here.
    """

    image_brain: FloatArray
    image_head: FloatArray | None
    mask: BoolArray
    gm: FloatArray
    wm: FloatArray
    csf: FloatArray
    affine: npt.NDArray[np.float64]
    voxel_size: tuple[float, float, float]
    maps_source: Literal["given", "computed"]


def load_anatomy(subject: Subject) -> Anatomy:
    """Load one subject in RAS, with a mask and tissue maps whether or not they came with it.

    Args:
        subject: Its files, as `find_subjects` gives them. A head alone needs a mask.

    Returns:
        The subject's anatomy; the same bits for the same files.

    Raises:
        InputRefused: As `check_files`; or a volume is unreadable, empty or not finite.
    """
    volumes = {name: _read(path) for name, path in check_files(subject).items()}
    head = volumes.get("head")
    mask = _brain_mask(volumes)
    brain = np.where(mask, volumes["brain" if subject.brain else "head"], 0).astype(np.float32)
    if not (brain > 0).any():
        raise InputRefused(f"{subject.name}: no voxel above 0 inside the brain; expected a T1w; check image and mask")
    affine = open_volume(_image_path(subject))[1].affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    voxel_size = (float(sizes[0]), float(sizes[1]), float(sizes[2]))
    if subject.tissue:
        gm, wm, csf = _given_maps(subject, volumes, mask)
        return Anatomy(brain, head, mask, gm, wm, csf, affine, voxel_size, "given")
    field = bias_field(brain, mask, what=subject.name)
    brain /= field
    head = None if head is None else head / field
    gm, wm, csf = classify(brain, mask, what=subject.name)
    return Anatomy(brain, head, mask, gm, wm, csf, affine, voxel_size, "computed")


def _image_path(subject: Subject) -> Path:
    path = subject.brain or subject.head
    if path is None:
        raise InputRefused(f"{subject.name}: no T1w; expected a brain or a head; put a *T1w*.nii.gz into its folder")
    return path


def check_files(subject: Subject) -> dict[str, Path]:
    """Check what names and headers alone tell of a subject; no data are read.

    Returns:
        Its files by what they are (brain, head, mask, gm, wm, csf), those that it has.

    Raises:
        InputRefused: There is neither brain nor mask, one of gm and wm is missing, grids differ, or a volume has no
            readable header, is not 3-D or too large.
    """
    path = _image_path(subject)
    if subject.brain is None and subject.mask is None:
        raise InputRefused(
            f"{path}: a head without a brain mask; expected a skull-stripped T1w or a mask; make a brain mask and "
            "put it beside as *mask*.nii.gz (or, where the image is stripped already, put 'brain' into its name)"
        )
    if subject.tissue and (subject.tissue.gm is None or subject.tissue.wm is None):
        one = next(filter(None, (subject.tissue.gm, subject.tissue.wm, subject.tissue.csf)))
        raise InputRefused(f"{one}: a tissue map alone; expected GM and WM maps; add the missing one or take this away")
    tissue = subject.tissue or TissuePaths(None, None, None)
    named = {"brain": subject.brain, "head": subject.head, "mask": subject.mask}
    named |= {"gm": tissue.gm, "wm": tissue.wm, "csf": tissue.csf}
    paths = {name: path for name, path in named.items() if path is not None}
    first = next(iter(paths.values()))
    grid = open_volume(first)[1]
    if np.prod(grid.shape, dtype=np.int64) > MAX_VOXELS:
        raise InputRefused(f"{first}: shape {grid.shape}; expected at most {MAX_VOXELS} voxels; crop or resample it")
    for path in paths.values():
        other = open_volume(path)[1]
        if not other.same(grid):
            raise InputRefused(
                f"{first} ({grid.shape}) and {path} ({other.shape}) are on different grids; "
                "expected one shape and affine; resample one onto the other"
            )
    return paths


def _read(path: Path) -> FloatArray:
    """Read one volume in RAS, shape (x, y, z)."""
    try:
        image = nib.as_closest_canonical(open_volume(path)[0])  # type: ignore[no-untyped-call]
        data = image.get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise InputRefused(f"{path}: data not readable ({error}); expected a whole file; copy it again") from error
    if not np.isfinite(data).all():
        raise InputRefused(f"{path}: holds NaN or infinity; expected numbers; replace them, by 0 outside the brain")
    return np.ascontiguousarray(data, dtype=np.float32)


def _brain_mask(volumes: dict[str, FloatArray]) -> BoolArray:
    """Take the mask as given, or the largest piece above 0 of the skull-stripped image with its holes filled."""
    if "mask" in volumes:
        return volumes["mask"] > 0.5
    pieces, count = ndimage.label(volumes["brain"] > 0)
    if count == 0:
        return np.zeros(pieces.shape, dtype=np.bool_)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(pieces == largest), dtype=np.bool_)


def _given_maps(
    subject: Subject, volumes: dict[str, FloatArray], mask: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    gm, wm = (_probability(volumes[name], f"{subject.name}'s {name} map") for name in ("gm", "wm"))
    rest = _probability(volumes["csf"], f"{subject.name}'s csf map") if "csf" in volumes else 1 - gm - wm
    gm, wm, csf = (np.where(mask, one, 0).clip(0, 1).astype(np.float32) for one in (gm, wm, rest))
    return gm, wm, csf


def _probability(data: FloatArray, what: str) -> FloatArray:
    """Bring a map to [0, 1] from the smallest full scale in MAP_SCALES that holds it."""
    scale = next((full for limit, full in MAP_SCALES if data.max() <= limit), None)
    if scale is None or data.min() < -0.1 * scale:
        raise InputRefused(
            f"{what}: values {data.min():g} to {data.max():g}; expected 0 to 1, 100 or 255; give a probability map"
        )
    shares: FloatArray = (data / np.float32(scale)).clip(0, 1)
    return shares
