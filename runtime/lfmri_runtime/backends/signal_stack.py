"""The thread's alternate signal stack (sigaltstack(2)), kept as it was while a library is called.

OpenVINO 2026.4 gives the calling thread one of its own when it loads its CPU plugin, and puts back what it found when
it is unloaded. Of two that live at the same time, the second puts back the first one's, which is freed by then: the
next signal ends the process with a segmentation fault.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SS_DISABLE = 2


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put back the alternate signal stack at the end of the block.

    Where the kernel refuses that, since with AMX in use it asks for a larger one, there is none afterwards: handlers
    then run on the thread's ordinary stack, which is large enough.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if libc.sigaltstack(ctypes.byref(before), None) != 0:
            libc.sigaltstack(ctypes.byref(_Stack(None, _SS_DISABLE, 0)), None)
