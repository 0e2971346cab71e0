"""Derived Enhanced MR Image Storage: one file of frames, A.36 of PS3.3, functional groups C.7.6.16."""

from copy import deepcopy
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from lfmri_runtime.dicom.classic import plane
from lfmri_runtime.dicom.target import Target, storage_class

#: Groups that are the same for all frames of a derived series; each with its elements.
_MEASURES = ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices")
#: Groups that are made anew, or that speak of the source's pixels.
_REPLACED = ("FrameVOILUTSequence", "PixelValueTransformationSequence", "DerivationImageSequence")
_PLACED = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence")
#: How the original was acquired, C.8.13.4 and C.7.6.18.3: a derived image may leave them out, and validators of some
#: age take them for an error there. The original has them.
_ACQUISITION = (
    "PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation",
    "PhaseContrast", "TimeOfFlightContrast", "ArterialSpinLabelingContrast", "SteadyStatePulseSequence",
    "EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression", "OversamplingPhase",
    "GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering", "SegmentedKSpaceTraversal", "CoverageOfKSpace",
    "NumberOfKSpaceTrajectories", "BulkMotionCompensationTechnique",
)  # fmt: skip
#: What an index of DimensionIndexValues may count through the slices: position in the stack, position in the patient.
_SLICE_POINTERS = (0x00209057, 0x00200032)


def stack_dataset(target: Target) -> Dataset:
    """The one file of a derived series; on the source's grid the frames keep their order."""
    (source,) = target.series.datasets
    dataset = target.template(source)
    count = target.volume.shape[2]
    order = [int(k) for k in np.argsort(target.series.frames)] if target.same_grid else list(range(count))
    dataset.SOPClassUID = storage_class(source)
    dataset.SOPInstanceUID = target.instance_uid(0)
    dataset.InstanceNumber = source.get("InstanceNumber") or 1
    dataset.ImageType = _image_type(source.get("ImageType"), target)
    dataset.NumberOfFrames = count
    for name in _ACQUISITION:
        dataset.pop(name, None)
    dataset.ContentQualification = "RESEARCH"  # C.8.13.2.1.1; no model of ours is a product
    dataset.SourceImageEvidenceSequence = [_evidence(target, source)]
    frames, shared = _groups(dataset, "PerFrame"), _groups(dataset, "Shared") or [Dataset()]
    _common(target, shared[0], [*frames, *shared])
    dataset.SharedFunctionalGroupsSequence = shared[:1]
    dataset.PerFrameFunctionalGroupsSequence = [
        _frame(target, deepcopy(frames[target.series.frames[target.sources_of(k)[0]]]), k) for k in order
    ]
    if not target.same_grid:
        _count_slices(dataset)
    stored = b"".join(target.encoding.stored(target.volume[..., k].T).tobytes() for k in order)
    dataset.add_new("PixelData", "OW", stored)
    return dataset


def _groups(dataset: Dataset, kind: str) -> list[Dataset]:
    return list(dataset.get(f"{kind}FunctionalGroupsSequence") or [])


def _image_type(values: Any, target: Target) -> list[str]:
    """C.8.16.1: derived, its second value stays PRIMARY, its third the source's, its fourth how it was derived."""
    third = list(values or [])[2:3] or ["OTHER"]
    return ["DERIVED", "PRIMARY", str(third[0]), target.product.contrast]


def _common(target: Target, shared: Dataset, groups: list[Dataset]) -> None:
    """Set what is the same in every frame, and take it out of the single frames."""
    for group in groups:
        for name in (*_REPLACED, *(() if target.same_grid else _PLACED)):
            group.pop(name, None)
        for item in group.get("MRImageFrameTypeSequence") or []:
            item.FrameType = _image_type(item.get("FrameType"), target)
    shared.FrameVOILUTSequence = [target.encoding.window()]
    shared.PixelValueTransformationSequence = [target.encoding.rescaling()]
    if not target.same_grid:
        place = plane(target.affine, 0)
        shared.PixelMeasuresSequence = [_part(place, *_MEASURES)]
        shared.PlaneOrientationSequence = [_part(place, "ImageOrientationPatient")]


def _frame(target: Target, group: Dataset, k: int) -> Dataset:
    """The functional groups of slice `k`."""
    if not target.same_grid:
        group.PlanePositionSequence = [_part(plane(target.affine, k), "ImagePositionPatient")]
    (source,) = target.series.datasets
    references = []
    for index in target.sources_of(k):
        item = target.reference(source)
        item.ReferencedFrameNumber = target.series.frames[index] + 1
        references.append(item)
    derivation = target.derivation()
    derivation.SourceImageSequence = references
    group.DerivationImageSequence = [derivation]
    return group


def _count_slices(dataset: Dataset) -> None:
    """Number the frames of a new grid along the stack."""
    pointers = [item.get("DimensionIndexPointer") for item in dataset.get("DimensionIndexSequence") or []]
    for k, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        for content in group.get("FrameContentSequence") or []:
            if "InStackPositionNumber" in content:
                content.InStackPositionNumber = k + 1
            values = content.get("DimensionIndexValues")
            values = [values] if isinstance(values, int) else list(values or [])
            counted = zip(pointers, values, strict=False)
            if values:
                content.DimensionIndexValues = [k + 1 if p in _SLICE_POINTERS else value for p, value in counted]


def _evidence(target: Target, source: Any) -> Dataset:
    """SourceImageEvidenceSequence, C.8.13.2: which instance the frames were derived from."""
    instance = Dataset()
    instance.ReferencedSOPClassUID = storage_class(source)
    instance.ReferencedSOPInstanceUID = str(source.get("SOPInstanceUID") or "")
    series = Dataset()
    series.SeriesInstanceUID = target.series.uid
    series.ReferencedSOPSequence = [instance]
    study = Dataset()
    study.StudyInstanceUID = str(source.get("StudyInstanceUID") or "")
    study.ReferencedSeriesSequence = [series]
    return study


def _part(place: Dataset, *names: str) -> Dataset:
    part = Dataset()
    for name in names:
        part.add(place[name])
    return part
