"""Bringing an enhanced scan, its reference and its input onto one grid and one scale, to be scored and shown.

Rule of the scale: with the sidecar of `lfmri enhance`, the enhanced scan and the interpolated input are divided by the
scale that the sidecar gives, and the reference is mapped onto the standard scale by its mean grey and white matter.
Without a sidecar all are divided by the reference's 99th percentile inside the mask. The prediction never sets the
scale.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.enhancer import interpolate
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.geometry import voxel_sizes
from lfmri_runtime.intensity import otsu_threshold
from lfmri_runtime.orientation import to_ras
from lfmri_runtime.sidecar import Intensity, intensity_of, read_sidecar, sidecar_path
from lfmri_runtime.volume import Scan, corner_distance, read_mask, read_scan

Float32Array = NDArray[np.float32]
Affine = NDArray[np.float64]

#: Voxel centres that are this close, in voxels, everywhere in a volume, are the same.
SAME_VOXEL = 0.1
#: Percentile of the reference that stands for 1 where no sidecar says better.
WHITE = 99.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Volumes on one grid in RAS voxel order and one scale, data range 1.

    Attributes:
        volumes: by name: interpolation (where an input was given), enhanced.
        reference: None where none was given.
        mask: None where none was given.
        uncertainty: None where none was given.
        voxel_size: mm.
        first: index of the volumes' first voxel on the enhanced scan's grid, RAS voxel order: all are cut to what they
            have in common.
        whole: shape of the enhanced scan, RAS voxel order.
        scale: intensity of the enhanced file that stands for 1.
        sidecar: of the enhanced scan; empty where there is none.
    """

    volumes: dict[str, Float32Array]
    reference: Float32Array | None
    mask: NDArray[np.bool_] | None
    uncertainty: Float32Array | None
    voxel_size: tuple[float, float, float]
    first: tuple[int, ...]
    whole: tuple[int, ...]
    scale: float
    sidecar: dict[str, object]


def compare(
    enhanced: Path,
    *,
    reference: Path | None = None,
    mask: Path | None = None,
    scan: Path | None = None,
    uncertainty: Path | None = None,
) -> Comparison:
    """Read and align.

    Args:
        enhanced: the image to judge.
        reference: the high-field image, on the same voxel grid up to flips and whole-voxel shifts.
        mask: of the brain, likewise.
        scan: the low-field input that `enhanced` was made from.
        uncertainty: standard deviation over samples, in the enhanced scan's units and on its grid.

    Raises:
        InputRefused: an unusable file, or grids that do not meet.
    """
    image, affine = _ras(read_scan(enhanced))
    document = read_sidecar(enhanced) or {}
    if "intensity" not in document:  # another program's: converters and BIDS keep a JSON file of this name too
        document = {}
    intensity = intensity_of(document, sidecar_path(enhanced)) if document else None
    placed = {"enhanced": _Placed(image, (0, 0, 0))}
    if scan is not None:
        placed = {"interpolation": _Placed(_interpolated(scan, affine, image.shape), (0, 0, 0)), **placed}
    for name, path in (("reference", reference), ("mask", mask), ("uncertainty", uncertainty)):
        if path is not None:
            placed[name] = _place(read_mask(path) if name == "mask" else read_scan(path), affine)
    first, common = _common(placed, enhanced)
    inside = common.pop("mask") > 0.5 if "mask" in common else None
    truth, scale = _scaled_reference(common.pop("reference", None), inside, intensity)
    limit = None if intensity is None else intensity.low_field.limit
    volumes = {name: np.clip(volume / np.float32(scale), 0, limit) for name, volume in common.items()}
    return Comparison(
        volumes=volumes,
        reference=truth,
        mask=inside,
        uncertainty=volumes.pop("uncertainty", None),
        voxel_size=voxel_sizes(affine),
        first=first,
        whole=image.shape,
        scale=scale,
        sidecar=document,
    )


@dataclass(frozen=True, eq=False)
class _Placed:
    """A volume in RAS order whose voxel `index + shift` is the enhanced scan's voxel `index`."""

    volume: Float32Array
    shift: tuple[int, ...]


def _ras(scan: Scan) -> tuple[Float32Array, Affine]:
    return to_ras(scan.data, scan.affine)


def _place(scan: Scan, affine: Affine) -> _Placed:
    """Place a volume whose grid differs from the enhanced scan's by whole voxels only."""
    volume, other = _ras(scan)
    between = np.linalg.inv(other) @ affine
    shift = np.round(between[:3, 3])
    shifted = np.eye(4)
    shifted[:3, 3] = shift
    if corner_distance(between, shifted, volume.shape) > SAME_VOXEL:
        sizes, wanted = (" x ".join(f"{size:.3g}" for size in voxel_sizes(a)) for a in (other, affine))
        raise InputRefused(
            f"{scan.source}: its grid ({sizes} mm) does not coincide with the enhanced scan's ({wanted} mm); expected "
            "the same voxels up to whole shifts: register and resample it onto the enhanced scan first"
        )
    return _Placed(volume, tuple(int(n) for n in shift))


def _common(placed: dict[str, _Placed], enhanced: Path) -> tuple[tuple[int, ...], dict[str, Float32Array]]:
    """Cut every volume to the box that all of them cover; the box's first voxel on the enhanced scan's grid with it."""
    first = [max(-p.shift[axis] for p in placed.values()) for axis in range(3)]
    last = [min(p.volume.shape[axis] - p.shift[axis] for p in placed.values()) for axis in range(3)]
    first = [max(0, n) for n in first]
    if any(a >= b for a, b in zip(first, last, strict=True)):
        raise InputRefused(f"{enhanced} does not overlap with the volumes that it is compared with; expected one head")
    return tuple(first), {
        name: p.volume[tuple(slice(a + s, b + s) for a, b, s in zip(first, last, p.shift, strict=True))]
        for name, p in placed.items()
    }


def _interpolated(path: Path, affine: Affine, shape: tuple[int, ...]) -> Float32Array:
    """The input on the enhanced scan's grid by cubic interpolation, RAS order."""
    scan = read_scan(path)
    data, own = _ras(scan)
    if data.shape != shape or not np.allclose(own, affine, atol=1e-3):
        data = interpolate(data, own, voxel_size=min(voxel_sizes(affine)))
    if data.shape != shape:
        raise InputRefused(
            f"{path} covers {data.shape} voxels of the enhanced scan's size; expected {shape}: give the scan that it "
            "was made from"
        )
    return data


def _scaled_reference(
    reference: Float32Array | None, mask: NDArray[np.bool_] | None, intensity: Intensity | None
) -> tuple[Float32Array | None, float]:
    """The reference on the common scale, and the intensity of the other volumes that stands for 1."""
    if intensity is not None:
        standard = None if reference is None else intensity.high_field.apply(reference, mask)
        return standard, intensity.scale
    if reference is None:
        return None, 1.0
    inside = mask if mask is not None else reference > otsu_threshold(reference)
    white = float(np.percentile(reference[inside], WHITE)) if inside.any() else 0.0
    if white <= 0:
        raise InputRefused("the reference holds no positive voxel inside the mask; expected a magnitude image")
    return np.clip(reference / np.float32(white), 0, None), white
