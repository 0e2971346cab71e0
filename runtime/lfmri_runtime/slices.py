"""Cutting a working volume into batches of slices, and the volume's noise.

The volume is padded once, on the far side of every axis, to the network's multiple; each plane's slices are views
of it. Noise has the padded volume's shape and is sliced the same way, so neither batch size nor plane order changes
which noise a voxel gets.
"""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator, Philox, SeedSequence  # now: an interrupt in the midst of its import gets lost
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


def plane_normals(thick_axis: int | None) -> tuple[int, ...]:
    """Normals of the planes that contain the thick axis; all three where no axis is thick."""
    return tuple(axis for axis in range(3) if axis != thick_axis)


def padded_shape(shape: tuple[int, ...], multiple: int) -> tuple[int, ...]:
    """Each length rounded up to the multiple."""
    return tuple(-(-length // multiple) * multiple for length in shape)


def pad(volume: Float32Array, multiple: int) -> Float32Array:
    """Append zeros on the far side of every axis up to the multiple."""
    target = padded_shape(volume.shape, multiple)
    return np.pad(volume, [(0, new - old) for new, old in zip(target, volume.shape, strict=True)])


def slices_of(volume: Float32Array, *, normal: int, thick_axis: int | None) -> Float32Array:
    """View of a volume as a stack of slices, (slices, rows, columns).

    Rows run along the thick axis, so that the network always meets the coarse direction there; where no axis is
    thick, rows and columns keep the volume's order.
    """
    rest = [axis for axis in range(3) if axis != normal]
    if thick_axis in rest:
        rest.sort(key=lambda axis: axis != thick_axis)
    view: Float32Array = volume.transpose(normal, *rest)
    return view


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of 0 .. count in steps of size."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def noise_volume(shape: tuple[int, ...], *, std: float, seed: int, sample: int) -> Float32Array:
    """x_0 ~ N(0, std^2 I) of one sample, by the counter-based generator Philox (Salmon et al. 2011)."""
    generator = Generator(Philox(SeedSequence([seed, sample])))
    x_0 = generator.standard_normal(shape, dtype=np.float32)
    x_0 *= np.float32(std)
    return x_0
