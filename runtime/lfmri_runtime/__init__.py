"""The slim runtime of lfmri: numpy, ONNX Runtime and nibabel; no torch, no SciPy.

>>> from lfmri_runtime import Enhancer, read_scan
>>> scan = read_scan(Path("scan.nii.gz"))
>>> enhanced = Enhancer().enhance(scan.data, scan.affine)
"""

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime from 1.29 on reports to its maker unless this stands before it is loaded; nothing of ours is sent.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from lfmri_runtime.bundle import Bundle, open_bundle
    from lfmri_runtime.enhancer import Enhanced, Enhancer
    from lfmri_runtime.errors import LfmriError
    from lfmri_runtime.volume import Scan, read_scan, write_scan

__all__ = ["Bundle", "Enhanced", "Enhancer", "LfmriError", "Scan", "open_bundle", "read_scan", "write_scan"]

_HOMES = {
    "Bundle": "bundle",
    "open_bundle": "bundle",
    "Enhanced": "enhancer",
    "Enhancer": "enhancer",
    "LfmriError": "errors",
    "Scan": "volume",
    "read_scan": "volume",
    "write_scan": "volume",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
