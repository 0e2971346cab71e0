"""Scores of one enhanced volume against its reference, slice by slice.

Whole-slice scores are inflated by black background, so each is given inside the mask as well; image and reference stay
in one common scale, because scaling them apart would hide errors of scale. Volumes are (i, j, k) in RAS voxel order.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime import metrics
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.lpips import Lpips

#: Planes normal to the voxel axes of a volume in RAS order.
PLANES = ("sagittal", "coronal", "axial")
#: A slice is judged where at least this share of its pixels is covered.
MIN_COVERAGE = 0.05
#: Without a mask, a pixel counts as covered above this share of the data range in the reference.
FOREGROUND = 0.05
#: What a report says about the two numbers above.
RULE = (
    "Per slice, then mean and standard deviation (population) over slices. Left out are slices in which the mask, or "
    "without a mask the reference above 5 % of the data range, covers less than 5 % of the pixels."
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score: its key in files, its label in tables, the decimals it is shown with, and which way is better."""

    key: str
    label: str
    decimals: int
    higher_is_better: bool


#: Every score; the last three exist only with a mask, the two of LPIPS only with an `Lpips`.
COLUMNS = (
    Column(key="psnr_db", label="PSNR (dB)", decimals=2, higher_is_better=True),
    Column(key="ssim", label="SSIM", decimals=3, higher_is_better=True),
    Column(key="lpips", label="LPIPS", decimals=3, higher_is_better=False),
    Column(key="mask_psnr_db", label="PSNR in mask (dB)", decimals=2, higher_is_better=True),
    Column(key="mask_ssim", label="SSIM in mask", decimals=3, higher_is_better=True),
    Column(key="mask_lpips", label="LPIPS in mask", decimals=3, higher_is_better=False),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one slice, by column key; `index` counts along the evaluation's axis from its `first`."""

    index: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean and population standard deviation over slices; a PSNR may be inf, and its deviation then NaN."""

    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one volume.

    Attributes:
        axis: Voxel axis that the slices are normal to; `PLANES[axis]` names the plane.
        data_range: The value that stands for white.
        lpips: Which LPIPS was used, or None.
        masked: Whether a mask was given.
        rows: One per judged slice, ascending.
        summary: By column key, in the order of COLUMNS.
        rule: Which slices were judged and how they were summarised.
    """

    axis: int
    data_range: float
    lpips: str | None
    masked: bool
    rows: tuple[Row, ...]
    summary: Mapping[str, Summary]
    rule: str = RULE


def evaluate(
    image: NDArray[np.float32],
    reference: NDArray[np.float32],
    *,
    axis: int,
    mask: NDArray[np.bool_] | None = None,
    lpips: Lpips | None = None,
    data_range: float = 1.0,
    first: int = 0,
) -> Evaluation:
    """Score a volume against its reference.

    Args:
        image: The volume to judge, (i, j, k), in the reference's scale.
        reference: The truth on the same grid, within [0, data_range].
        axis: 0, 1 or 2: the voxel axis that the slices are normal to.
        mask: True inside the brain, same shape.
        lpips: Adds the perceptual distance; for the mask's, both slices are multiplied by the mask.
        data_range: The value that stands for white; positive.
        first: Number of the first slice, for volumes that were cut out of larger ones.

    Returns:
        Rows and summary under the rule RULE.

    Raises:
        UsageError: The axis is not 0, 1 or 2.
        InputRefused: Grids that differ, values that are not finite, slices too small, or no slice to judge.
        BackendMissing: scikit-image is not installed.
    """
    _check(image, reference, mask, axis)
    pictures, truths = np.moveaxis(image, axis, 0), np.moveaxis(reference, axis, 0)
    inside = None if mask is None else np.moveaxis(np.asarray(mask, bool), axis, 0)
    indices = _judged(truths > FOREGROUND * data_range if inside is None else inside)
    pictures, truths, inside = pictures[indices], truths[indices], None if inside is None else inside[indices]
    scores = _pixel_scores(pictures, truths, inside, data_range)
    if lpips is not None:
        scores["lpips"] = lpips(pictures, truths, data_range=data_range).tolist()
        if inside is not None:
            scores["mask_lpips"] = lpips(pictures * inside, truths * inside, data_range=data_range).tolist()
    return Evaluation(
        axis=axis,
        data_range=data_range,
        lpips=None if lpips is None else lpips.name,
        masked=mask is not None,
        rows=_rows([first + index for index in indices], scores),
        summary={column.key: _summary(scores[column.key]) for column in COLUMNS if column.key in scores},
    )


def _pixel_scores(
    pictures: NDArray[Any], truths: NDArray[Any], inside: NDArray[np.bool_] | None, data_range: float
) -> dict[str, list[float]]:
    """PSNR and SSIM per slice by column key, whole and, where there is a mask, inside it."""
    scores: dict[str, list[float]] = defaultdict(list)
    for n, (picture, truth) in enumerate(zip(pictures, truths, strict=True)):
        similarity, similarity_map = metrics.ssim_with_map(picture, truth, data_range=data_range)
        scores["psnr_db"].append(metrics.psnr(picture, truth, data_range=data_range))
        scores["ssim"].append(similarity)
        if inside is not None:
            scores["mask_psnr_db"].append(metrics.masked_psnr(picture, truth, inside[n], data_range=data_range))
            scores["mask_ssim"].append(metrics.masked_mean(similarity_map, inside[n]))
    return scores


def _rows(indices: list[int], scores: Mapping[str, list[float]]) -> tuple[Row, ...]:
    keys = [column.key for column in COLUMNS if column.key in scores]
    return tuple(Row(index=index, scores={key: scores[key][n] for key in keys}) for n, index in enumerate(indices))


def _judged(covered: NDArray[np.bool_]) -> list[int]:
    """Indices along axis 0 of the slices that RULE keeps."""
    indices = np.flatnonzero(covered.mean(axis=(1, 2)) >= MIN_COVERAGE)
    if indices.size == 0:
        raise InputRefused(
            f"no slice is covered to {MIN_COVERAGE:.0%} by the mask or the reference's foreground; expected at least "
            "one: check the mask, the scale (white is the data range) and the axis"
        )
    return [int(index) for index in indices]


def _summary(values: Sequence[float]) -> Summary:
    """Mean and deviation that stay free of warnings where a PSNR is inf."""
    if not all(math.isfinite(value) for value in values):
        return Summary(mean=math.inf, std=math.nan)
    return Summary(mean=float(np.mean(values)), std=float(np.std(values)))


def _check(image: NDArray[Any], reference: NDArray[Any], mask: NDArray[Any] | None, axis: int) -> None:
    shapes = [volume.shape for volume in (image, reference, mask) if volume is not None]
    if image.ndim != 3 or any(shape != reference.shape for shape in shapes):
        raise InputRefused(
            f"image, reference and mask have shapes {', '.join(map(str, shapes))}; expected one 3-D shape: "
            "resample them onto the reference's grid"
        )
    if axis not in (0, 1, 2):
        raise UsageError(f"axis {axis} was asked for; a volume's slices are normal to axis 0, 1 or 2")
