"""A series to be written: what its instances share, and what each takes over from its source."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, MRImageStorage

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.consistency import warning
from lfmri_runtime.dicom.encoding import Encoding
from lfmri_runtime.dicom.identity import SCHEME, SOURCE_IMAGE, code, derived_uid, equipment
from lfmri_runtime.dicom.planes import RETIRED
from lfmri_runtime.dicom.series import Series

#: Elements that describe the source's pixels, the moment of its writing, or both: untrue of the derived image.
_DROPPED = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "IconImageSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenterWidthExplanation", "WindowCenter",
    "WindowWidth", "RescaleType", "RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence",
    "SourceImageSequence", "SeriesDescriptionCodeSequence", "InstanceCreationDate", "InstanceCreationTime",
    "InstanceCreatorUID", "MACParametersSequence", "DigitalSignaturesSequence", "DataSetTrailingPadding",
)  # fmt: skip
#: Elements that one series has in common (C.7.3.1) and one time of content, all taken from its first slice.
_OF_THE_SERIES = ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "SeriesNumber", "SeriesDescription")
#: Groups before it are of messages and of the file, PS3.5 7.1 and PS3.10 7.1.
_FIRST_GROUP = 8
#: Groups of overlays and curves, which are drawn for the source's pixels.
_DRAWINGS = (0x50, 0x60)


@dataclass(frozen=True)
class Product:
    """One of the series that enhancing gives.

    Attributes:
        name: in the code and in UIDs.
        meaning: of the code.
        contrast: fourth value of an Enhanced MR ImageType, C.8.16.1.4.
        series_offset: added to the source's SeriesNumber.
        suffix: of the series' description, after the label.
    """

    name: str
    meaning: str
    contrast: str
    series_offset: int
    suffix: str = ""


ENHANCED = Product("ENHANCED", "Image quality transfer by conditional flow matching", "FILTERED", 1000)
UNCERTAINTY = Product(
    "UNCERTAINTY", "Standard deviation over samples of image quality transfer", "STD_DEVIATION", 2000, " uncertainty"
)


@dataclass(frozen=True, eq=False)
class Target:
    """One derived series.

    Attributes:
        product: what it is.
        uid: its SeriesInstanceUID: another for other slices, another model, other settings or another label.
        series: its source.
        volume: (i, j, k), its values.
        affine: of the volume, voxel to mm, RAS+.
        encoding: how they are stored.
        bundle: that made it.
        report: of the core.
        label: the site's own text.
    """

    product: Product
    uid: str
    series: Series
    volume: NDArray[np.float32]
    affine: NDArray[np.float64]
    encoding: Encoding
    bundle: Bundle
    report: dict[str, Any]
    label: str

    @cached_property
    def same_grid(self) -> bool:
        """Whether every voxel lies where one of the source lies."""
        return self.volume.shape == self.series.data.shape and np.allclose(self.affine, self.series.affine, atol=1e-4)

    def instance_uid(self, index: int) -> str:
        """SOPInstanceUID of one file."""
        return derived_uid("instance", self.uid, str(index))

    def sources_of(self, k: int) -> list[int]:
        """Slices of the source that slice `k` lies on or between, the nearest first."""
        if self.same_grid:
            return [k]
        place = np.linalg.solve(self.series.affine, self.affine @ [0, 0, k, 1])[2]
        last = self.series.data.shape[2] - 1
        around = {int(np.clip(index, 0, last)) for index in (np.floor(place + 1e-3), np.ceil(place - 1e-3))}
        return sorted(around, key=lambda index: (abs(index - place), index))

    def template(self, source: Any) -> Dataset:
        """A data set with all that holds for the whole series, from one of the source's; no pixels, no place."""
        dataset = kept(source)
        first = self.series.datasets[0]
        for name in _OF_THE_SERIES:
            if name in dataset:
                del dataset[name]
            if first.get(name) is not None:
                setattr(dataset, name, first.get(name))
        dataset.SeriesInstanceUID = self.uid
        dataset.SeriesNumber = int(first.get("SeriesNumber") or 0) % 10**9 + self.product.series_offset
        text = f"{self.label}{self.product.suffix}"
        before = str(first.get("SeriesDescription") or "").strip()[: 63 - len(text)].strip()
        dataset.SeriesDescription = f"{before} {text}".strip()
        warned = warning(self.report["consistency"])
        if warned is not None:  # whoever looks at the series in an archive has no sidecar
            dataset.ImageComments = "; ".join(filter(None, (str(source.get("ImageComments") or ""), warned)))[:10240]
        if str(source.get("BurnedInAnnotation") or "") != "YES":
            dataset.BurnedInAnnotation = "NO"
        contributors = [*(dataset.get("ContributingEquipmentSequence") or []), equipment(self.bundle)]
        dataset.ContributingEquipmentSequence = contributors
        dataset.Columns, dataset.Rows = self.volume.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        dataset.PixelRepresentation = int(self.encoding.dtype.kind == "i")
        return dataset

    def derivation(self) -> Dataset:
        """DerivationDescription and its code, C.7.6.1.1.3."""
        item = Dataset()
        contract, report = self.bundle.contract, self.report
        item.DerivationDescription = (
            f"{self.product.meaning}; model {contract.name} {contract.version} (sha256 {self.bundle.sha256}), "
            f"{report['steps']} Euler steps, {report['samples']} samples, seed {report['seed']}"
        )[:1024]
        item.DerivationCodeSequence = code(self.product.name, SCHEME, self.product.meaning)
        return item

    def reference(self, source: Any) -> Dataset:
        """An item of SourceImageSequence."""
        item = Dataset()
        item.ReferencedSOPClassUID = storage_class(source)
        item.ReferencedSOPInstanceUID = str(source.get("SOPInstanceUID") or "")
        item.SpatialLocationsPreserved = "YES" if self.same_grid else "NO"
        item.PurposeOfReferenceCodeSequence = code(*SOURCE_IMAGE)
        return item


def storage_class(source: Any) -> str:
    """SOP class by what the file is: some consoles write another UID there, or the class for single frames."""
    if not source.get("PerFrameFunctionalGroupsSequence"):
        return str(MRImageStorage)
    legacy = source.get("SOPClassUID") == LegacyConvertedEnhancedMRImageStorage
    return str(LegacyConvertedEnhancedMRImageStorage if legacy else EnhancedMRImageStorage)


def kept(source: Any) -> Dataset:
    """A copy without private elements, drawings, what is not true any more, and elements that cannot be read."""
    copy = Dataset()
    for tag in sorted(source.keys()):
        if tag.group < _FIRST_GROUP or tag.is_private or tag.group >> 8 in _DRAWINGS or tag in RETIRED.values():
            continue
        try:
            element = source[tag]
            if element.keyword in _DROPPED:
                continue
            if element.VR == "SQ":
                copy.add_new(tag, "SQ", [kept(item) for item in element.value])
            else:
                copy.add(deepcopy(element))
        except Exception:  # noqa: BLE001 - one bad element of a console's is no reason to lose the scan
            continue
    return copy
