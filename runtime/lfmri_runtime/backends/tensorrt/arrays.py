"""Arrays that are on the GPU already: pycuda's, CuPy's, PyTorch's, by CUDA's array interface, version 2 or 3."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lfmri_runtime.errors import InputRefused

#: TensorRT reads addresses that are multiples of this; slices of 8 x 8 and more keep the alignment of their stack.
ALIGNMENT = 256
#: Handle of the legacy default stream, where pycuda and PyTorch launch by default, and then name no stream.
DEFAULT_STREAM = 1


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array on the GPU that is read where it is.

    Attributes:
        address: of its first element.
        stream: handle of the stream that may still write it: the default stream where the array names none.
        owner: keeps it alive.
    """

    address: int
    stream: int
    owner: Any


def on_device(array: Any, shape: Sequence[int]) -> DeviceArray | None:
    """Take an array without copying it.

    Args:
        array: anything; None is returned for what is not on the GPU.
        shape: that it must have.

    Raises:
        InputRefused: it is on the GPU, but not float32, or not in one piece in C order, or not aligned.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        return None
    found = tuple(interface["shape"])
    dense = tuple(4 * math.prod(found[axis + 1 :]) for axis in range(len(found)))
    address = int(interface["data"][0])
    if (
        found != tuple(shape)
        or interface["typestr"] != "<f4"
        or tuple(interface.get("strides") or dense) != dense
        or interface.get("mask") is not None
        or address % ALIGNMENT
    ):
        raise InputRefused(
            f"an array on the GPU has shape {found}, type {interface['typestr']}, strides {interface.get('strides')} "
            f"and address {address:#x}; expected shape {tuple(shape)}, float32, C order, no mask, a multiple of "
            f"{ALIGNMENT}: copy it first"
        )
    return DeviceArray(address, int(interface.get("stream") or DEFAULT_STREAM), array)
