"""An enhanced image beside MaRGE's own, at the end of a sequence's analysis.

Put this file into MaRGE's `marge/seq/`, install `lfmri` into MaRGE's environment, and call it at the end of your
sequence's `sequenceAnalysis`, after that of its parent has reconstructed and saved the scan:

    super().sequenceAnalysis(mode=mode)
    marge_recon.add_enhanced(self)

The enhanced image is shown beside the original and written by MaRGE's own NIfTI writer as NAME_lfmri.nii; the
original stays as it is. When enhancing fails, the reason is printed and nothing is added.

Written against josalggui/MaRGE as it was in public in 2026 and tested with a stand-in for its sequence and writer; it
has not run on a scanner.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from marge.marge_utils import utils

from lfmri_runtime import Enhancer, LfmriError

MM_IN_CM = 10.0

_lock = threading.Lock()
_enhancer: Enhancer | None = None


def add_enhanced(sequence: Any, *, steps: int = 1) -> bool:
    """Enhance a sequence's image, show it and write it.

    Args:
        sequence: after its reconstruction: `mapVals` holds image3D (slice, phase, read), nPoints (read, phase, slice),
            axesOrientation (the axis x, y, z of each), fov (x, y, z, cm) and dfov (mm).
        steps: Euler steps.

    Returns:
        whether there is an enhanced image.
    """
    global _enhancer
    values = sequence.mapVals
    size = voxel_size(values["fov"], values["nPoints"], values["axesOrientation"])
    try:
        with _lock:  # opened once, and used by one scan at a time
            _enhancer = _enhancer or Enhancer()
            magnitude = np.abs(values["image3D"]).astype(np.float32)
            enhanced = _enhancer.enhance(magnitude, np.diag([*size, 1.0]), grid="input", steps=steps).mean
    except (LfmriError, MemoryError) as error:
        print(f"WARNING: lfmri: not enhanced: {error}")
        return False
    values["image3D_lfmri"] = enhanced
    shown = {"widget": "image", "data": enhanced, "xLabel": "", "yLabel": "", "title": "Enhanced (lfmri)"}
    sequence.output.append({**shown, "row": 0, "col": 1})
    folder = Path(sequence.directory_mat).parent / "nii"
    utils.save_nifti(
        axes_orientation=values["axesOrientation"],
        n_points=values["nPoints"],
        fov=values["fov"],
        dfov=values["dfov"],
        image=enhanced,
        file_path=str(folder / f"{sequence.file_name}_lfmri.nii"),
    )
    return True


def voxel_size(fov: Any, points: Any, axes: Any) -> tuple[float, float, float]:
    """Voxel sizes along the axes of image3D: slice, phase, read, mm.

    Args:
        fov: along x, y, z, cm.
        points: of read, phase, slice.
        axes: which of x, y, z each of read, phase, slice is: 0, 1 or 2.
    """
    read, phase, slices = (MM_IN_CM * fov[axis] / count for axis, count in zip(axes, points, strict=True))
    return float(slices), float(phase), float(read)
