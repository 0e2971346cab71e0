"""Derived MR Image Storage: one file a slice, A.4 of PS3.3."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lfmri_runtime.dicom.encoding import numbers
from lfmri_runtime.dicom.stacking import LPS_TO_RAS
from lfmri_runtime.dicom.target import UNCERTAINTY, Target, storage_class


def slice_dataset(target: Target, k: int) -> Dataset:
    """Slice `k` of a derived series."""
    sources = [target.series.datasets[index] for index in target.sources_of(k)]
    dataset = target.template(sources[0])
    dataset.SOPClassUID = storage_class(sources[0])
    dataset.SOPInstanceUID = target.instance_uid(k)
    dataset.InstanceNumber = (sources[0].get("InstanceNumber") if target.same_grid else None) or k + 1
    dataset.ImageType = ["DERIVED", "SECONDARY", *_flavours(sources[0], target)]
    dataset.update(target.derivation())
    dataset.SourceImageSequence = [target.reference(source) for source in sources]
    _place(dataset, target, k)
    encoding = target.encoding
    dataset.update(encoding.window())
    if (encoding.slope, encoding.intercept) != (1.0, 0.0):  # the standard's own class has no rescaling
        dataset.update(encoding.rescaling())
    dataset.add_new("PixelData", "OW", encoding.stored(target.volume[..., k].T).tobytes())
    return dataset


def plane(affine: NDArray[np.float64], k: int) -> Dataset:
    """The image plane of slice `k` of a grid, C.7.6.2."""
    lps = LPS_TO_RAS @ affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    place = Dataset()
    place.ImagePositionPatient = numbers((lps @ [0, 0, k, 1])[:3])
    place.ImageOrientationPatient = numbers((lps[:3, :2] / sizes[:2]).T.ravel())
    place.PixelSpacing = numbers(sizes[[1, 0]])
    (place.SliceThickness,) = (place.SpacingBetweenSlices,) = numbers(sizes[2:])
    return place


def _place(dataset: Dataset, target: Target, k: int) -> None:
    """On the source's grid its own elements stay, and only missing ones are added."""
    for element in plane(target.affine, k):
        if not (target.same_grid and dataset.get(element.keyword)):
            dataset.add(element)
    if not target.same_grid:
        for name in ("SliceLocation", "PixelAspectRatio"):
            dataset.pop(name, None)


def _flavours(source: Any, target: Target) -> list[str]:
    """ImageType from its third value on: the source's; for an uncertainty one that says so."""
    if target.product is UNCERTAINTY:
        return ["OTHER", target.product.contrast]
    return [str(value) for value in list(source.get("ImageType") or [])[2:]] or ["OTHER"]
