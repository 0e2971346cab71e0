"""One synthesised subject: a label map to a T1w head, its brain mask and exact soft tissue maps.

After SynthSeg's generative model (Billot et al. 2023): deform the labels, draw an intensity for each tissue, blur. Here
the contrast stays that of T1w, and tissues have a texture, since low-field scans keep it and a network must too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from lfmri_trainer.simulation.scanner import bias_field
from lfmri_trainer.synthesis.tissues import CONTRAST, LABEL_LIMIT, TISSUES

Float32Array = NDArray[np.float32]
Labels = NDArray[np.int16]

#: White matter's mean in the image; integers then keep a thousandth.
WHITE = 1000.0
#: Spacing of the deformation's control points, voxels, and range of their standard deviation along each axis.
CONTROL_SPACING = 24
DEFORMATION = (1.0, 2.5)
#: Standard deviations of the texture's two smooth random fields, voxels: grain, and slow changes within a tissue.
TEXTURE_WIDTHS = (0.8, 4.0)
#: Range of the standard deviation of the scanner's point spread, voxels: it makes the partial volume.
POINT_SPREAD = (0.45, 0.7)
#: Range of the bias field's peak: what a bias correction leaves.
BIAS = (0.02, 0.10)
#: The brain mask is the brain's blurred shape above a level from this range: tight to generous strippings.
MASK_WIDTH = 3.0
MASK_LEVEL = (0.15, 0.45)


@dataclass(frozen=True, eq=False)
class Synthesised:
    """Volumes on the label map's grid.

    Attributes:
        image: T1w of the whole head, white matter about WHITE.
        mask: the brain.
        gm: share of grey matter, in [0, 1]; the three sum to 1 in the mask and are 0 outside it.
        wm: of white matter.
        csf: of cerebrospinal fluid.
    """

    image: Float32Array
    mask: NDArray[np.bool_]
    gm: Float32Array
    wm: Float32Array
    csf: Float32Array


def synthesise(labels: Labels, *, rng: np.random.Generator) -> Synthesised:
    """Make one subject.

    Args:
        labels: (x, y, z), each one of TISSUES'.
        rng: of everything that is drawn.
    """
    labels = deform(labels, deviation=rng.uniform(*DEFORMATION), rng=rng)
    width = rng.uniform(*POINT_SPREAD)
    image = gaussian_filter(draw_intensities(labels, rng=rng), width)
    image *= bias_field(image.shape, peak=rng.uniform(*BIAS), rng=rng)
    mask, maps = tissue_maps(labels, width=width, level=rng.uniform(*MASK_LEVEL))
    return Synthesised(np.float32(WHITE) * image, mask, **maps)


def deform(labels: Labels, *, deviation: float, rng: np.random.Generator) -> Labels:
    """Move the labels by a smooth random displacement; nearest label, so that none is invented.

    Args:
        labels: (x, y, z).
        deviation: standard deviation of the control points' displacement along each axis, voxels.
        rng: of the displacement.
    """
    control = tuple(-(-n // CONTROL_SPACING) + 1 for n in labels.shape)
    stretch = [n / c for n, c in zip(labels.shape, control, strict=True)]
    places = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in labels.shape), indexing="ij", sparse=True)
    moved = np.empty((3, *labels.shape), dtype=np.float32)
    for axis, place in enumerate(places):
        drawn = rng.normal(0, deviation, control).astype(np.float32)
        moved[axis] = place + zoom(drawn, stretch, order=3, mode="nearest")
    result: Labels = map_coordinates(labels, moved, order=0, mode="nearest")
    return result


def draw_intensities(labels: Labels, *, rng: np.random.Generator) -> Float32Array:
    """An intensity for each voxel, white matter 1: its tissue's mean, and a texture around it."""
    level, texture = (np.zeros(LABEL_LIMIT, dtype=np.float32) for _ in range(2))
    contrast = rng.uniform(*CONTRAST)
    for tissue in TISSUES.values():
        mean = rng.uniform(*tissue.level)
        level[list(tissue.labels)] = 1 - contrast * (1 - mean) if tissue.kind in ("gm", "wm") else mean
        texture[list(tissue.labels)] = tissue.texture / np.sqrt(len(TEXTURE_WIDTHS))
    fields = [_smooth_noise(labels.shape, width=width, rng=rng) for width in TEXTURE_WIDTHS]
    result: Float32Array = level[labels] * np.clip(1 + texture[labels] * sum(fields), 0, None)
    return result


def tissue_maps(labels: Labels, *, width: float, level: float) -> tuple[NDArray[np.bool_], dict[str, Float32Array]]:
    """Brain mask and soft maps: the labels' own shapes, blurred as the image is.

    Args:
        labels: (x, y, z).
        width: standard deviation of the blur, voxels.
        level: of the brain's blurred shape at the mask's edge.
    """
    hard = {kind: np.isin(labels, _labels_of(kind)) for kind in ("gm", "wm", "csf")}
    solid = hard["gm"] | hard["wm"]
    soft = {kind: gaussian_filter(where.astype(np.float32), width) for kind, where in hard.items()}
    total = soft["gm"] + soft["wm"] + soft["csf"]
    mask = (solid | (gaussian_filter(solid.astype(np.float32), MASK_WIDTH) > level)) & (total > 0.5)
    return mask, {kind: np.where(mask, part / np.where(mask, total, 1), 0) for kind, part in soft.items()}


def _labels_of(kind: str) -> list[int]:
    return [label for tissue in TISSUES.values() if tissue.kind == kind for label in tissue.labels]


def _smooth_noise(shape: tuple[int, ...], *, width: float, rng: np.random.Generator) -> Float32Array:
    """A Gaussian random field of standard deviation 1."""
    noise: Float32Array = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), width)
    noise /= noise.std()
    return noise
