"""DICOM series as files: classic and Enhanced MR in, derived series out; no network. Needs the extra `dicom`.

Messages and notes hold no value of a text element and nothing of what pydicom says: either may name the patient.
Paragraphs cited are of the DICOM standard, https://www.dicomstandard.org/current (PS3.3 where no part is named).
"""

from lfmri_runtime.errors import missing_extra

try:
    import pydicom  # noqa: F401 - only whether it is there
except ImportError:
    raise missing_extra("dicom", "pydicom") from None
