"""DICOM series that are built by hand, as scanners write them: classic MR, one file a slice, and Enhanced MR."""

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from lfmri_runtime.dicom.parsing import quiet

from .heads import scan_of
from .peers import require_peer

STUDY = "1.2.826.0.1.3680043.9.7.1"
SERIES = f"{STUDY}.2"
FRAME_OF_REFERENCE = f"{STUDY}.3"
#: Words that no message, note or sidecar may hold.
SECRETS = ("DOE", "JANE", "SECRET")
SLICES = 12
#: Columns, rows, slices; neither the matrix nor its pixels are square.
SHAPE = (20, 26, SLICES)
SPACING = (1.6, 1.3, 5.0)
#: From file order to the order along the normal: interleaved, odd slices first.
INTERLEAVED = [*range(1, SLICES, 2), *range(0, SLICES, 2)]

Change = Callable[[Dataset, int], object]


def ras_affine() -> NDArray[np.float64]:
    """An oblique transform of a transverse stack, voxel to mm."""
    turn = np.linalg.qr(np.array([[0.97, 0.1, -0.2], [-0.12, 0.96, 0.15], [0.2, -0.14, 0.95]]))[0]
    turn = turn * np.sign(np.diag(turn)) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    return affine


def volume(shape: tuple[int, int, int] = SHAPE) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The smooth head of the other tests, a little over 400 at its brightest, on the stack's grid."""
    return scan_of(ras_affine(), shape)


def common(number: int) -> Dataset:
    """What patient, study, series and equipment have in every file."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName, ds.PatientID = "DOE^JANE", "SECRET-17"
    ds.PatientBirthDate, ds.PatientSex = "19700101", "F"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, SERIES, FRAME_OF_REFERENCE
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20250102"
    ds.StudyTime, ds.SeriesTime = "101500", "102000"
    ds.ContentTime = f"1020{number:02d}"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "7", "SECRET-18", "DOE^JOHN"
    ds.Modality, ds.SeriesNumber, ds.SeriesDescription = "MR", 3, "T1 SECRET"
    ds.ProtocolName = "T1 SECRET"
    ds.Manufacturer, ds.ManufacturerModelName = "Low Field Makers", "LF1"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "17", "1.0"
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition, ds.BodyPartExamined = "HFS", "HEAD"
    ds.MagneticFieldStrength = "0.064"
    ds.LossyImageCompression = "00"
    ds.add_new(0x00090010, "LO", "MAKER PRIVATE")
    ds.add_new(0x00091001, "LO", "SECRET-19")
    return ds


def pixels(ds: Dataset, stored: NDArray[Any]) -> None:
    """Put pixels (rows, columns), or (frames, rows, columns), of 16 bits into a data set."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.add_new("PixelData", "OW", stored.tobytes())


def plane(affine: NDArray[np.float64], k: int) -> tuple[list[float], list[float]]:
    """Position and orientation of slice k, LPS, as short as a DS must be."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    axes = (lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)).T
    return [round(v, 6) for v in (lps @ [0, 0, k, 1])[:3]], [round(v, 8) for v in axes.ravel()]


def classic(folder: Path, *, change: Change = lambda ds, k: None, shape: tuple[int, int, int] = SHAPE) -> list[Path]:
    """Write signed 16-bit slices with a rescaling, interleaved; `change` is called with each data set and its slice."""
    data, affine = volume(shape)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    order = [k for k in INTERLEAVED if k < shape[2]]
    for number, k in enumerate(order, start=1):
        ds = common(number)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, f"{SERIES}.{number}"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        ds.InstanceNumber = number
        ds.AcquisitionDate, ds.AcquisitionTime = ds.ContentDate, ds.ContentTime
        ds.AcquisitionNumber = 1
        ds.PatientOrientation = ""
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "SP", "", "2D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "500", "10", "1"
        ds.ImagePositionPatient, ds.ImageOrientationPatient = plane(affine, k)
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [SPACING[1], SPACING[0]], "5", "5"
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "0.5", "-10", "US"
        ds.WindowCenter, ds.WindowWidth = "200", "400"
        pixels(ds, np.rint((data[..., k].T + 10) / 0.5).astype(np.int16))
        ds.SmallestImagePixelValue, ds.LargestImagePixelValue = 20, 900
        with quiet():
            change(ds, k)
        paths.append(save(ds, folder / f"{number:03d}.dcm"))
    return paths


def save(ds: Dataset, path: Path, *, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a file of PS3.10 whatever the data set holds."""
    if not hasattr(ds, "file_meta"):
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = syntax
    stream = BytesIO()
    with quiet():
        ds.save_as(stream, enforce_file_format=True)
    path.write_bytes(stream.getvalue())
    return path


def item(**values: Any) -> Dataset:
    """A data set of some elements."""
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def enhanced(path: Path, *, change: Callable[[Dataset], object] = lambda ds: None) -> Path:
    """Write an Enhanced MR file of unsigned pixels, its frames in interleaved order."""
    data, affine = volume()
    ds = common(0)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.InstanceNumber = EnhancedMRImageStorage, f"{SERIES}.1", 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    ds.AcquisitionDateTime, ds.AcquisitionDuration = "20250102102000", 100.0
    ds.PixelPresentation, ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "MONOCHROME", "VOLUME", "NONE"
    ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "T1"
    ds.ContentQualification, ds.ApplicableSafetyStandardAgency = "PRODUCT", "IEC"
    ds.BurnedInAnnotation, ds.PresentationLUTShape = "NO", "IDENTITY"
    ds.AcquisitionContextSequence = []
    ds.NumberOfFrames = SLICES
    pointer = {"FunctionalGroupPointer": 0x00209111, "DimensionOrganizationUID": f"{STUDY}.4"}
    ds.DimensionOrganizationSequence = [item(DimensionOrganizationUID=f"{STUDY}.4")]
    ds.DimensionIndexSequence = [
        item(DimensionIndexPointer=0x00209056, **pointer),
        item(DimensionIndexPointer=0x00209057, **pointer),
    ]
    _, orientation = plane(affine, 0)
    frame_type = {"PixelPresentation": "MONOCHROME", "VolumetricProperties": "VOLUME"}
    frame_type |= {"VolumeBasedCalculationTechnique": "NONE", "ComplexImageComponent": "MAGNITUDE"}
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[
                item(PixelSpacing=[SPACING[1], SPACING[0]], SliceThickness=5.0, SpacingBetweenSlices=5.0)
            ],
            PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)],
            MRImageFrameTypeSequence=[item(FrameType=list(ds.ImageType), AcquisitionContrast="T1", **frame_type)],
            PixelValueTransformationSequence=[item(RescaleIntercept="0", RescaleSlope="0.1", RescaleType="US")],
            FrameVOILUTSequence=[item(WindowCenter="200", WindowWidth="400")],
            FrameAnatomySequence=[item(FrameLaterality="U", AnatomicRegionSequence=[code("69536005", "SCT", "Head")])],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(
                    FrameAcquisitionNumber=1,
                    StackID="1",
                    InStackPositionNumber=k + 1,
                    DimensionIndexValues=[1, k + 1],
                    FrameReferenceDateTime="20250102102000",
                    FrameAcquisitionDateTime="20250102102000",
                    FrameAcquisitionDuration=1.0,
                )
            ],
            PlanePositionSequence=[item(ImagePositionPatient=plane(affine, k)[0])],
        )
        for k in INTERLEAVED
    ]
    pixels(ds, np.rint(data[..., INTERLEAVED].T * 10).astype(np.uint16))
    with quiet():
        change(ds)
    return save(ds, path)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def require_program(name: str) -> None:
    """A DICOM tool that a test compares with."""
    require_peer(name, shutil.which(name) is not None)
