"""A small subject of three blocks, written as a plain folder of files, for tests of the simulator."""

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import axcodes2ornt, ornt_transform

from lfmri_trainer.tissue import Anatomy

Array = npt.NDArray[np.float32]

SHAPE = (30, 32, 34)
#: Where each tissue is, no two axes alike; "scalp" is in the head but in no map, and outside the brain.
BLOCKS = {
    "wm": (slice(3, 14), slice(4, 28), slice(3, 30)),
    "gm": (slice(14, 25), slice(4, 19), slice(3, 30)),
    "csf": (slice(14, 25), slice(19, 28), slice(3, 30)),
    "scalp": (slice(27, 29), slice(4, 28), slice(3, 30)),
}
INTENSITIES = {"wm": 110.0, "gm": 80.0, "csf": 30.0, "scalp": 150.0}


def block(tissue: str, *, margin: int = 0) -> npt.NDArray[np.bool_]:
    """A tissue's voxels; with a margin, those at least so far from its faces."""
    inside = np.zeros(SHAPE, dtype=np.bool_)
    inside[tuple(slice(part.start + margin, part.stop - margin) for part in BLOCKS[tissue])] = True
    return inside


def phantom(*, texture: float = 0.0, seed: int = 0, voxel_size: float = 1.0) -> Anatomy:
    """Blocks of pure tissue, one intensity each; a texture makes every voxel another."""
    rng = np.random.default_rng(seed)
    head = np.zeros(SHAPE, np.float32)
    for tissue, intensity in INTENSITIES.items():
        head[block(tissue)] = intensity
    head *= (1 + texture * rng.uniform(-1, 1, SHAPE)).astype(np.float32)
    maps = {tissue: block(tissue).astype(np.float32) for tissue in ("gm", "wm", "csf")}
    mask = (maps["gm"] + maps["wm"] + maps["csf"]) > 0
    affine = np.diag([voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = (-12.5, 7.25, -31.0)
    size = (voxel_size, voxel_size, voxel_size)
    return Anatomy(head * mask, head, mask, maps["gm"], maps["wm"], maps["csf"], affine, size, "given")


def save_two(folder: Path) -> Path:
    """Write a folder of two subjects that differ in texture."""
    for seed, name in enumerate(("anna", "ben")):
        save_subject(folder / name, phantom(texture=0.2, seed=seed))
    return folder


def save_subject(
    folder: Path, anatomy: Anatomy, *, codes: str = "RAS", affine: npt.NDArray[np.float64] | None = None
) -> Path:
    """Write a plain subject folder, its voxels in the order that `codes` names (or RAS, with another affine)."""
    folder.mkdir(parents=True)
    volumes = {
        "T1w": anatomy.image_head,
        "T1w_brain": anatomy.image_brain,
        "brain_mask": anatomy.mask.astype(np.uint8),
        "gm": anatomy.gm,
        "wm": anatomy.wm,
        "csf": anatomy.csf,
    }
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    for name, volume in volumes.items():
        image = nib.Nifti1Image(volume, anatomy.affine if affine is None else affine)
        nib.save(image.as_reoriented(turn), folder / f"{name}.nii.gz")
    return folder
