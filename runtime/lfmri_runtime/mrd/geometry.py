"""Where the slices of a volume lie and how large their voxels are.

The enhancement needs the slices' order, the voxel size and the patient's axes; nothing of it goes into an answer, whose
headers are copies. Writers of MRD are known to swap the field of view's axes on non-square images, in image headers and
XML alike, and to put the corner into `position`: so sizes come from the XML header's reconSpace and the distances
between positions, are checked against the images, and whatever had to be guessed is said in a note.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.mrd import xml
from lfmri_runtime.mrd.image import Image, ImageHeader
from lfmri_runtime.volume.checks import FARTHEST_MM, VOXEL_MM

Float64Array = NDArray[np.float64]

#: Sizes and directions that differ by less than this are the same.
SAME = 0.01
#: Gaps between slices that differ by more than this share of their median are worth a note.
UNEVEN = 0.1
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_ASK = "give the parameter voxelSize, such as 1.6 1.6 5"


@dataclass(frozen=True)
class ReconSpace:
    """The XML header's reconSpace.

    Attributes:
        matrix: voxels along x, y, z.
        field_of_view: mm along x, y, z.
    """

    matrix: Float64Array
    field_of_view: Float64Array


def recon_space(text: str) -> ReconSpace | None:
    """The first encoding's reconSpace; None where the text is not such XML or holds no positive numbers."""
    root = xml.parse(text)
    if root is None:
        return None
    try:
        space = [
            np.array(
                [float(root.findtext(f"{{*}}encoding/{{*}}reconSpace/{{*}}{name}/{{*}}{axis}", "")) for axis in "xyz"]
            )
            for name in ("matrixSize", "fieldOfView_mm")
        ]
    except ValueError:
        return None
    return ReconSpace(*space) if all(np.isfinite(s).all() and (s > 0).all() for s in space) else None


@dataclass(frozen=True)
class Placement:
    """Order and affine of one volume.

    Attributes:
        order: positions of the images in ascending slice order; one image for a 3-D image.
        affine: of voxels (x, y, slice) to mm, RAS+.
        notes: one line for each guess.
    """

    order: tuple[int, ...]
    affine: Float64Array
    notes: tuple[str, ...]


def place(images: list[Image], space: ReconSpace | None, asked: tuple[float, float, float] | None) -> Placement:
    """Order the images of one volume and find its affine.

    Args:
        images: of one matrix and one orientation: a single 3-D image, or 2-D slices.
        space: of the XML header.
        asked: voxel size that the client gave; it goes before everything else.

    Raises:
        InputRefused: slices that cannot be told apart, no voxel size, or one that no scan has.
    """
    notes: list[str] = []
    first = images[0].header
    axes = _directions(first, notes)
    positions = np.array([image.header.position for image in images], dtype=np.float64)
    positions = np.clip(np.nan_to_num(positions), -FARTHEST_MM, FARTHEST_MM)
    depths = positions @ axes[2]
    order, gap = _slice_order(images, depths, notes)
    size = np.array(asked if asked is not None else _voxel_size(first, space, gap, notes))
    if not ((size >= VOXEL_MM[0]) & (size <= VOXEL_MM[1])).all():
        raise InputRefused(f"voxels of {_said(size)} mm; expected {VOXEL_MM[0]} to {VOXEL_MM[1]} mm: {_ASK}")
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ (axes.T * size)
    slices = first.matrix_size[2] if len(images) == 1 else 1
    half = (np.array([*first.matrix_size[:2], slices]) - 1) / 2
    affine[:3, 3] = LPS_TO_RAS @ positions[order[0]] - affine[:3, :3] @ half
    return Placement(order, affine, tuple(notes))


def orientation_of(header: ImageHeader) -> tuple[float, ...]:
    """Directions of x and y, rounded so that slices of one stack agree."""
    return tuple(np.nan_to_num(np.round((*header.read_dir, *header.phase_dir), 2)).tolist())


def _directions(header: ImageHeader, notes: list[str]) -> Float64Array:
    """Unit vectors of x, y and slices as rows, LPS."""
    read, phase, normal = (np.array(d, dtype=np.float64) for d in (header.read_dir, header.phase_dir, header.slice_dir))
    with np.errstate(all="ignore"):  # broken numbers fail the comparison
        gram = np.array([read @ read, phase @ phase, 1 + read @ phase])
        if not (np.abs(gram - 1) < SAME).all():
            notes.append("the images' directions are not at right angles; slices were taken as axial, feet to head")
            return np.eye(3)
        cross = np.cross(read, phase)
        sign = -1.0 if normal @ cross < 0 else 1.0
    return np.stack([read, phase, sign * cross])


def _slice_order(images: list[Image], depths: Float64Array, notes: list[str]) -> tuple[tuple[int, ...], float | None]:
    """By position along the normal, else by slice index; and the distance between slices, if positions give it."""
    if len(images) == 1:
        return (0,), None
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order])
    gap = float(np.median(gaps))
    if not gaps.min() > VOXEL_MM[0]:
        indices = [image.header.slice for image in images]
        if len(set(indices)) < len(indices):
            raise InputRefused(
                "neither positions nor slice indices tell the images of a volume apart; expected one image for each "
                "slice: number repetitions, contrasts, phases or sets in their headers"
            )
        notes.append("the images' positions do not tell the slices apart; they were ordered by slice index")
        return tuple(int(n) for n in np.argsort(indices)), None
    if np.abs(gaps - gap).max() > UNEVEN * gap:
        notes.append(f"slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart; they were taken as evenly spaced")
    return tuple(int(n) for n in order), gap


def _voxel_size(
    header: ImageHeader, space: ReconSpace | None, gap: float | None, notes: list[str]
) -> tuple[float, float, float]:
    matrix = np.array(header.matrix_size, dtype=np.float64)
    own = np.array(header.field_of_view, dtype=np.float64)
    if space is not None and (space.matrix[:2] == matrix[:2]).all():
        pixel = _pixel_of_header(space.field_of_view, own, matrix, notes)
        thickness = space.field_of_view[2] / space.matrix[2]
    else:
        pixel = _pixel_of_images(own, matrix, notes)
        thickness = own[2] / matrix[2]
    if gap is None and matrix[2] == 1:
        notes.append(f"a distance of {thickness:.4g} mm between slices comes from the field of view")
    return float(pixel[0]), float(pixel[1]), float(thickness if gap is None else gap)


def _pixel_of_header(view: Float64Array, own: Float64Array, matrix: Float64Array, notes: list[str]) -> Float64Array:
    """From the XML header, which the images' own field of view may confirm or contradict."""
    pixel = _square(view, matrix, notes)
    given = (own[:2] > 0).all()
    if pixel is None:
        if given and not np.allclose(view[:2], own[:2], rtol=SAME):
            raise InputRefused(
                f"the XML header's field of view is {_said(view[:2])} mm, the images' {_said(own[:2])} mm; "
                f"expected them to agree: {_ASK}"
            )
        return view[:2] / matrix[:2]
    if given and not np.allclose(np.sort(view[:2]), np.sort(own[:2]), rtol=SAME):
        notes.append(
            f"the XML header's field of view is {_said(view[:2])} mm, the images' {_said(own[:2])}; the first was taken"
        )
    return pixel


def _pixel_of_images(own: Float64Array, matrix: Float64Array, notes: list[str]) -> Float64Array:
    """From the images alone; only square pixels tell that their field of view is right."""
    pixel = _square(own, matrix, notes)
    if pixel is None:
        raise InputRefused(
            f"no XML header fits the images of {_said(matrix[:2])} pixels, and their own field of view of "
            f"{_said(own[:2])} mm gives no square ones; expected a voxel size: {_ASK}"
        )
    notes.append(f"no XML header fits the images; pixels of {pixel[0]:.4g} mm come from their own field of view")
    return pixel


def _square(view: Float64Array, matrix: Float64Array, notes: list[str]) -> Float64Array | None:
    """The pixel size, where it comes out square with the field of view's axes as given or swapped."""
    straight, swapped = view[:2] / matrix[:2], view[1::-1] / matrix[:2]
    if not (straight > 0).all():
        return None
    if abs(straight[0] - straight[1]) <= SAME * straight[0]:
        return straight
    if abs(swapped[0] - swapped[1]) <= SAME * swapped[0]:
        notes.append(
            f"the field of view of {_said(view[:2])} mm gives {_said(matrix[:2])} square pixels of {swapped[0]:.4g} mm "
            "only with its axes swapped; it was taken as swapped"
        )
        return swapped
    return None


def _said(numbers: Float64Array) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
