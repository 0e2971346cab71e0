"""OpenVINO itself: imported without its telemetry, its first inference alone, its errors of memory as ours."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from lfmri_runtime.backends.onnxruntime import MEMORY, lacks_memory
from lfmri_runtime.errors import TryAgainLater, missing_extra

TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry: its model converter, which we do not use, would load the sender.

    Raises:
        BackendMissing: OpenVINO is not installed.
    """
    blocked = TELEMETRY not in sys.modules
    if blocked:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment] # an import of it fails, and OpenVINO takes its stub
    try:
        import openvino
    except ImportError:
        raise missing_extra("openvino", "OpenVINO") from None
    finally:
        if blocked:
            del sys.modules[TELEMETRY]
    return openvino


@cache
def rehearse(openvino: Any) -> None:
    """Infer once in one thread, with a graph of one operator.

    OpenVINO's Python module deadlocks where two threads make its first inference: each static variable of it is made
    under a lock by a thread that then waits for the interpreter's lock, which is held by one that waits for the first.
    """
    x = openvino.opset13.parameter([1], np.float32)
    request = (
        openvino.Core().compile_model(openvino.Model([openvino.opset13.relu(x)], [x]), "CPU").create_infer_request()
    )
    request.infer({0: np.zeros(1, dtype=np.float32)}, share_inputs=True)[0].copy()


@contextmanager
def telling_memory() -> Iterator[None]:
    """The library's own errors where memory was all that was missing, as ours."""
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error):
            raise TryAgainLater(MEMORY) from None
        raise
