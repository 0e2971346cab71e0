"""A NIfTI scan as a classic DICOM MR series, to try a DICOM node with: one instance a slice, no patient.

    python docs/examples/dicom_series.py scan.nii.gz series/

A console sends its own instances; this file stands in for one. Needs numpy, nibabel and pydicom.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

#: 12 bits, as many scanners store.
LARGEST = 4095
LPS = np.diag([-1.0, -1.0, 1.0])


def series_of(scan: Path, *, uid: str) -> list[Dataset]:
    """The instances of one series; axes x, y of the volume are columns and rows.

    Args:
        scan: NIfTI.
        uid: SeriesInstanceUID; the other UIDs are made of it, so that the same call makes the same series.
    """
    image = nib.Nifti1Image.from_filename(scan)
    data, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine
    stored = np.rint(np.clip(data / max(float(data.max()), 1e-6), 0, 1) * LARGEST).astype(np.uint16)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    directions = LPS @ affine[:3, :3] / size
    series = []
    for number in range(data.shape[2]):
        dataset = Dataset()
        dataset.SOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(number)])
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[uid, "study"]), uid
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[uid, "frame"])
        dataset.Modality, dataset.Manufacturer = "MR", "example"
        dataset.PatientName = dataset.PatientID = dataset.PatientBirthDate = dataset.PatientSex = ""
        dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.AccessionNumber = ""
        dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = dataset.PatientPosition = ""
        dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        dataset.ScanningSequence, dataset.SequenceVariant = "GR", "NONE"
        dataset.ScanOptions, dataset.MRAcquisitionType = "", "3D"
        dataset.EchoTime, dataset.RepetitionTime, dataset.EchoTrainLength = 4, 20, 1
        dataset.ImagePositionPatient = [f"{v:.6g}" for v in LPS @ (affine @ [0, 0, number, 1])[:3]]
        dataset.ImageOrientationPatient = [f"{v:.6g}" for v in directions[:, :2].T.ravel()]
        dataset.PixelSpacing = [f"{size[1]:.6g}", f"{size[0]:.6g}"]
        dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{size[2]:.6g}"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = data.shape[1], data.shape[0], 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = np.ascontiguousarray(stored[..., number].T).tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        series.append(dataset)
    return series


def main() -> None:
    """Write the instances into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(series_of(options.scan, uid=generate_uid())):
        dataset.save_as(options.folder / f"{number:04d}.dcm", enforce_file_format=True)


if __name__ == "__main__":
    main()
