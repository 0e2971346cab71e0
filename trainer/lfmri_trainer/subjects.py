"""Find the high-field subjects in a folder: which file is the brain, the head, the mask and the tissue maps.

Three layouts are known. HCP is the naming of the Human Connectome Project's minimal pre-processing pipelines
(Glasser et al., NeuroImage 2013), BIDS that of the Brain Imaging Data Structure and its derivatives
(Gorgolewski et al., Scientific Data 2016); a plain folder has one folder of files a subject.
Only names and, where several files would do, headers are read here; `lfmri_trainer.tissue` reads the data.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError, SpatialImage

from lfmri_runtime.errors import InputRefused

#: Two affines are the same grid when no entry differs by more: a micrometre a voxel, or of the origin, in mm.
AFFINE_TOLERANCE = 1e-3

LAYOUTS = (
    "HCP (<id>/T1w/T1w_acpc_dc_restore_brain.nii.gz), BIDS (sub-*/[ses-*/]anat/*_T1w.nii.gz) "
    "or plain (<id>/*T1w*brain*.nii.gz, or <id>/*T1w*.nii.gz with *brain*mask*.nii.gz)"
)
_ENDINGS = (".nii.gz", ".nii", ".mgz")
_LABEL_WORDS = {"aseg", "labels", "seg", "dseg", "pve", "pveseg"}
_SEPARATORS = re.compile(r"[_\-.+ ]")
#: Where a person's name ends; visits are V1_MR in HCP Lifespan, MR1 in OASIS-1 and -2, MR_d0129 in OASIS-3 and -4.
_SAME_PERSON = re.compile(r"_ses-|_copy-|_V\d+_MR|(?<=OAS[12]_\d{4})_MR\d|(?<=OAS\d{5})_MR_d")
_T1W_WORDS = {"t1", "t1w"}
#: `T1w_brain`, `T1wbrain`, and ANTs' `T1w_BrainExtractionBrain`.
_STRIPPED = re.compile("T1w.*(?:brain|Brain$)")
#: `brain_mask`, `T1wbrainmask`, ANTs' `BrainExtractionMask`, `bet_mask` of the tools named so; not `brain_lesion_mask`.
_BRAIN_MASK = re.compile(r"(?:^|[\W_]|t1w?)(?:brain|bet)(?:[\W_]?extraction)?[\W_]?mask")
#: What SPM (c1, wc1, mwc1) and CAT12 (p1, mwp1) put in front of a scan's name for its tissue maps.
_SPM_MAP = re.compile(r"[mrsw0]*[cp]\d")
_READ_ERRORS = (OSError, EOFError, ValueError, ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class TissuePaths:
    """A subject's tissue probability maps; csf may be None, then it is mask - gm - wm, clipped to [0, 1]."""

    gm: Path | None
    wm: Path | None
    csf: Path | None


@dataclass(frozen=True)
class Subject:
    """One subject's files: skull-stripped T1w, whole-head T1w, brain mask and tissue maps, each where there is one."""

    name: str
    brain: Path | None
    head: Path | None
    mask: Path | None
    tissue: TissuePaths | None


@dataclass(frozen=True)
class Grid:
    """A volume's grid in RAS order: its shape in voxels and its affine (4, 4) from voxels to mm."""

    shape: tuple[int, ...]
    affine: npt.NDArray[np.float64]

    def same(self, other: "Grid") -> bool:
        """Say whether the other grid has this shape, and this affine within AFFINE_TOLERANCE."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, rtol=0, atol=AFFINE_TOLERANCE)


def person_of(subject: str) -> str:
    """Whose volume it is: the name without session (`_ses-`), copy (`_copy-`) and visit (HCP Lifespan, OASIS).

    Splits are by person.
    """
    return _SAME_PERSON.split(subject)[0]


def same_people(subjects: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of the subjects that are a person of the others, sorted; sessions and copies are that person."""
    people = {person_of(other) for other in others}
    return sorted({subject for subject in subjects if person_of(subject) in people})


def open_volume(path: Path) -> tuple[SpatialImage, Grid]:
    """Open a volume by its header alone and say which grid it has once in RAS; InputRefused where it is no volume."""
    try:
        image = nib.load(path)
    except _READ_ERRORS as error:
        raise InputRefused(f"{path}: not readable ({error}); expected NIfTI or MGH; copy it again") from error
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise InputRefused(f"{path}: an image without a grid; expected a 3-D NIfTI or MGH volume; convert it")
    if len(image.shape) != 3:
        raise InputRefused(f"{path}: shape {image.shape}; expected a 3-D volume; save the one volume to use")
    if not np.isfinite(image.affine).all():
        raise InputRefused(f"{path}: NaN or infinity in the affine; expected voxels to mm; repair the header")
    orientation = io_orientation(image.affine)  # type: ignore[no-untyped-call]
    if np.isnan(orientation).any():
        raise InputRefused(f"{path}: a singular affine; expected voxels to mm; repair the header")
    shape = tuple(int(image.shape[axis]) for axis in np.argsort(orientation[:, 0]))
    to_ras = inv_ornt_aff(orientation, image.shape)  # type: ignore[no-untyped-call]
    return image, Grid(shape, image.affine @ to_ras)


def find_subjects(folder: Path) -> list[Subject]:
    """Find every subject in a folder, sorted by name.

    Subjects are looked for one folder down; where there is none, the folder itself may be one.

    Args:
        folder: A study in the HCP, BIDS or plain layout, or one subject's folder.

    Returns:
        At least one subject, each with a brain or a head.

    Raises:
        InputRefused: The folder is missing, holds no subject, a header that is needed to choose is broken, or the
            names in a plain folder leave open which file is the brain, the head or its mask.
    """
    if not folder.is_dir():
        raise InputRefused(f"{folder}: no such folder; expected a folder of subjects: {LAYOUTS}")
    itself = folder.resolve().name
    found = _hcp(folder, itself)
    if not found:
        derived = _volumes(folder / "derivatives", deep=True)
        children = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name != "derivatives"]
        found = [subject for child in children for subject in _subjects_of(child, derived)]
    found = found or _plain(folder, itself)
    if not found:
        raise InputRefused(f"{folder}: no subject found; expected one of three layouts: {LAYOUTS}; rename the files so")
    return sorted(found, key=lambda subject: subject.name)


def _subjects_of(folder: Path, derived: Sequence[Path]) -> list[Subject]:
    return _hcp(folder, folder.name) or _bids(folder, derived) or _plain(folder, folder.name)


def _hcp(folder: Path, name: str) -> list[Subject]:
    for place in (folder / "T1w", folder):
        stem = "T1w_acpc_dc_restore"
        brain, head, mask = (_existing(place, one) for one in (f"{stem}_brain", stem, "brainmask_fs"))
        if brain or (head and mask):
            return [Subject(name, brain, head, mask, _tissue([*_volumes(place), *_volumes(folder)]))]
    return []


def _existing(folder: Path, stem: str) -> Path | None:
    return next((folder / f"{stem}{end}" for end in _ENDINGS if (folder / f"{stem}{end}").is_file()), None)


def _bids(folder: Path, derived: Sequence[Path]) -> list[Subject]:
    if not folder.name.startswith("sub-"):
        return []
    sessions = [folder, *sorted(folder.glob("ses-*"))]
    return [subject for session in sessions for subject in _bids_session(folder.name, session, derived)]


def _bids_session(subject: str, folder: Path, derived: Sequence[Path]) -> list[Subject]:
    session = folder.name if folder.name != subject else None
    raw = _volumes(folder / "anat")
    files = [*raw, *(path for path in derived if _belongs(path, subject, session))]
    t1w = [path for path in files if _stem(path).endswith("_T1w")]
    if not any(path in raw for path in t1w):
        return []
    brains = [path for path in t1w if "_desc-brain_" in path.name]
    masks = [path for path in files if _stem(path).endswith("_desc-brain_mask")]
    # What fMRIPrep has bias-corrected, then the raw scan, then derivatives of any kind: enhanced ones are no reference.
    heads = sorted((path for path in t1w if path not in brains), key=lambda path: "_desc-preproc_" not in path.name)
    maps = _tissue([path for path in files if _stem(path).endswith("_probseg")])
    # Several are runs of one scan here, and any of them will do.
    return [_choose("_".join(filter(None, (subject, session))), brains, heads, masks, maps, any_will_do=True)]


def _belongs(path: Path, subject: str, session: str | None) -> bool:
    """Say whether a derivative is of this subject and session, and in the space of its own T1w."""
    entities = dict(part.split("-", 1) for part in _stem(path).split("_") if "-" in part)
    own = f"sub-{entities.get('sub')}" == subject and subject in path.parts
    its_session = f"ses-{entities['ses']}" if "ses" in entities else session
    return own and its_session == session and entities.get("space", "T1w") in {"T1w", "orig"}


def _plain(folder: Path, name: str) -> list[Subject]:
    maps = [path for path in _volumes(folder) if _words(path) & {"gm", "wm", "csf"}]
    files = [path for path in _volumes(folder) if path not in maps]
    any_masks = [path for path in files if "mask" in path.name.lower()]
    t1w = [path for path in files if _is_t1w(path) and path not in any_masks and not _is_spm_map(path, files)]
    if not t1w:
        return []
    brains = [path for path in t1w if "brain" in _words(path) or _STRIPPED.search(_stem(path))]
    heads = [path for path in t1w if path not in brains]
    own = _own_words(name, t1w)
    masks = sorted((path for path in any_masks if _is_brain_mask(path, own)), key=_brain_first)
    if any_masks and not masks and not brains:
        raise InputRefused(
            f"{any_masks[0]}: by its name not the brain's mask; expected *brain*mask*.nii.gz beside {heads[0].name}; "
            "make a brain mask, or rename this one where it is one"
        )
    return [_choose(name, brains, heads, masks, _tissue(maps), any_will_do=False)]


def _is_t1w(path: Path) -> bool:
    """Say whether a name says T1w: as a word of any case, or joined but written so; the T1w/T2w ratio is none."""
    stem = _stem(path)
    return bool(_words(path) & _T1W_WORDS) or ("T1w" in stem and "T2w" not in stem)


def _is_spm_map(path: Path, files: Sequence[Path]) -> bool:
    """Say whether a name is another file's behind the prefix of tissue maps; `c1007_T1w` alone may be a person's."""
    prefix = _SPM_MAP.match(_stem(path))
    return prefix is not None and _stem(path)[prefix.end() :] in map(_stem, files)


def _own_words(name: str, t1w: Sequence[Path]) -> set[str]:
    """Collect the words that say whose files these are: the subject's name, and what stands in front of T1w."""
    fronts = (takewhile(lambda word: word != "t1" and "t1w" not in word, _split(_stem(path))) for path in t1w)
    return {*_split(name), *(word for front in fronts for word in front)}


def _is_brain_mask(path: Path, own: set[str]) -> bool:
    """Say whether a mask is the brain's: its name says so, or says nothing but whose it is and numbers (`mask_1mm`)."""
    stem = _stem(path).lower()
    rest = set(_split(stem.replace("mask", " "))) - own - _T1W_WORDS - {"brain", "bet", ""}
    return bool(_BRAIN_MASK.search(stem)) or all(word[0].isdigit() for word in rest)


def _brain_first(path: Path) -> tuple[bool, str]:
    return not _BRAIN_MASK.search(_stem(path).lower()), path.name


def _choose(
    name: str,
    brains: Sequence[Path],
    heads: Sequence[Path],
    masks: Sequence[Path],
    tissue: TissuePaths | None,
    *,
    any_will_do: bool,
) -> Subject:
    """Take the first mask, and the brain and head on its grid (the head on the brain's where there is no mask)."""
    mask = masks[0] if masks else None
    brain = _take("brain", brains, mask, any_will_do=any_will_do)
    return Subject(name, brain, _take("head", heads, mask or brain, any_will_do=any_will_do), mask, tissue)


def _take(kind: str, paths: Sequence[Path], reference: Path | None, *, any_will_do: bool) -> Path | None:
    """Take the file on the reference's grid; of several the first where any will do, else InputRefused names them."""
    if len(paths) > 1 and reference is not None:
        grid = open_volume(reference)[1]
        same = (path for path in paths if open_volume(path)[1].same(grid))
        # Where none is on the grid, reading them tells which grids differ.
        paths = list(islice(same, 1 if any_will_do else None)) or paths[:1]
    if len(paths) > 1 and not any_will_do:
        names = ", ".join(path.name for path in paths)
        raise InputRefused(
            f"{paths[0].parent}: {names} may each be the T1w {kind}; expected one of them; move the others elsewhere"
        )
    return next(iter(paths), None)


def _tissue(files: Sequence[Path]) -> TissuePaths | None:
    """Take the first file of each tissue by a word in its name, whatever its case; None where there is none."""
    gm, wm, csf = (next((path for path in files if word in _words(path)), None) for word in ("gm", "wm", "csf"))
    return TissuePaths(gm, wm, csf) if gm or wm or csf else None


def _volumes(folder: Path, *, deep: bool = False) -> list[Path]:
    """List a folder's volumes, neither label maps nor hidden files, sorted; none where there is no such folder."""
    # Hidden are what a killed worker was writing and macOS's "._" files: no volumes.
    files = folder.rglob("[!.]*") if deep else folder.glob("[!.]*")
    return sorted(path for path in files if path.name.endswith(_ENDINGS) and not _words(path) & _LABEL_WORDS)


def _words(path: Path) -> set[str]:
    return set(_split(_stem(path)))


def _split(text: str) -> list[str]:
    return _SEPARATORS.split(text.lower())


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(end) for end in _ENDINGS if path.name.endswith(end)), path.name)
