"""One 3-D scan on disk: read with every check that the network's input needs, written back with its geometry.

NIfTI-1, NIfTI-2 (`.nii`, `.nii.gz`) and FreeSurfer's MGH (`.mgh`, `.mgz`). The header is checked before memory is
taken for the voxels. No text field of a header is ever put into a message: it may name a patient.

Field names and rules: NIfTI-1 standard, nifti1.h, https://nifti.nimh.nih.gov/nifti-1; MGH format,
https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat.
"""

from lfmri_runtime.volume.checks import MAX_VOXELS
from lfmri_runtime.volume.reading import read_mask, read_scan
from lfmri_runtime.volume.scan import SUFFIXES, Scan, corner_distance
from lfmri_runtime.volume.writing import without_window, write_scan

__all__ = [
    "MAX_VOXELS",
    "SUFFIXES",
    "Scan",
    "corner_distance",
    "read_mask",
    "read_scan",
    "without_window",
    "write_scan",
]
