"""An enhanced series beside MRI4ALL's own, made in its reconstruction service.

Put this file into the console's `services/recon/`, install `lfmri` into the console's environment, and call it in
`services/recon/reconstruction.py` where a volume is done, after the console has written its own series:

    from services.recon import mri4all_recon
    mri4all_recon.add_enhanced(fft, task, folder + "/" + mri4all_taskdata.DICOM, voxel_size=(1.6, 1.6, 5.0))

The console's own writer makes the DICOM files and puts the result into `scan.json`; the scan then goes on to
`complete` as ever, with two series. When enhancing fails, the reason is logged and the original series stays alone.

Written against mri4all/console as it was in public in 2025 and tested with a stand-in for its writer; it has not run
on a scanner. Its writer gives every series pixels of 1 mm and a slice distance of its own: the voxel sizes must be
those of your sequence, and neither of the two series has the right ones in its header.
"""

import threading
from typing import Any

import numpy as np
from common import logger
from recon.DICOM import DICOM_utils

from lfmri_runtime import Enhancer, LfmriError

NAME = "Enhanced (lfmri)"
#: Series number after those of magnitude, k-space and phase.
SERIES_OFFSET = 3

log = logger.get_logger()
_lock = threading.Lock()
_enhancer: Enhancer | None = None


def add_enhanced(
    image: np.ndarray, task: Any, folder: str, *, voxel_size: tuple[float, float, float], steps: int = 1
) -> bool:
    """Enhance a volume and hand it to the console's writer as a result of its own.

    Args:
        image: (read, phase, slice), complex or magnitude, as `DICOM_utils.write_dicom` takes it; not changed.
        task: the scan's task.
        folder: where the scan's DICOM files lie.
        voxel_size: along the three axes of `image`, mm.
        steps: Euler steps.

    Returns:
        whether there is an enhanced series.
    """
    global _enhancer
    try:
        with _lock:  # opened once for the life of the service, and used by one scan at a time
            _enhancer = _enhancer or Enhancer()
            magnitude = np.abs(image).astype(np.float32)
            enhanced = _enhancer.enhance(magnitude, np.diag([*voxel_size, 1.0]), grid="input", steps=steps)
    except (LfmriError, MemoryError) as error:
        log.warning(f"lfmri: not enhanced: {error}")
        return False
    bundle = _enhancer.bundle.contract
    log.info(f"lfmri: enhanced in {sum(enhanced.report['seconds'].values()):.1f} s")
    DICOM_utils.write_dicom(
        enhanced.mean,
        task,
        folder,
        series_offset=SERIES_OFFSET,
        name=NAME,
        description=f"Derived by a neural network ({bundle.name} {bundle.version}); not for diagnosis",
        primary_result=False,
        autoload_viewer=0,
        result_index=len(task.results),
    )
    return True
