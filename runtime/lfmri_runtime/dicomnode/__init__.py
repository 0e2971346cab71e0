"""A DICOM node: series come in by C-STORE, enhanced ones leave by C-STORE. Needs the extra `dicom`.

A series is one folder that moves through a spool on disk (`spool`). `receiving` fills it, `working` enhances what has
become quiet, `sending` empties it; `node` is the surface that a service runs. Paragraphs cited are of the DICOM
standard, https://www.dicomstandard.org/current.
"""

from lfmri_runtime.errors import missing_extra

try:
    import pynetdicom  # noqa: F401 - only whether it is there
except ImportError:
    raise missing_extra("dicom", "pynetdicom") from None
