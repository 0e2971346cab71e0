"""Intensities to stored values: the source's own steps where they are fine enough, else a rescaling of its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from lfmri_runtime.volume.writing import steps_for

#: The display window ends at this percentile of the voxels that are brighter than the mean, which leaves out the air.
WINDOW_PERCENTILE = 99.0


@dataclass(frozen=True)
class Encoding:
    """How a series' values are stored; one for all slices, so that they compare.

    Attributes:
        dtype: uint16 or int16.
        slope: value of one step.
        intercept: value of 0.
        center: of the display window, in values.
        width: of the display window, in values.
    """

    dtype: np.dtype[Any]
    slope: float
    intercept: float
    center: float
    width: float

    def stored(self, plane: NDArray[np.float32]) -> NDArray[Any]:
        """Values to stored numbers."""
        return np.rint((plane.astype(np.float64) - self.intercept) / self.slope).astype(self.dtype)

    def window(self) -> Dataset:
        """The display window, C.11.2.1.2."""
        item = Dataset()
        item.WindowCenter, item.WindowWidth = numbers([self.center, self.width])
        return item

    def rescaling(self) -> Dataset:
        """From stored numbers to values, C.11.1; US: of no unit."""
        item = Dataset()
        item.RescaleIntercept, item.RescaleSlope = numbers([self.intercept, self.slope])
        item.RescaleType = "US"
        return item


def encoding_for(data: NDArray[np.float32], *, signed: bool, slope: float, intercept: float) -> Encoding:
    """Choose the stored values of a volume.

    Args:
        data: finite values.
        signed: whether the source's pixels are.
        slope: of the source.
        intercept: of the source.
    """
    dtype = np.dtype(np.int16 if signed else np.uint16)
    slope, intercept = (rounded(value) for value in steps_for(data, dtype, slope, intercept))
    low, high = float(data.min()), float(np.percentile(data[data > data.mean()], WINDOW_PERCENTILE))
    return Encoding(dtype, slope, intercept, rounded((low + high) / 2), rounded(max(high - low, 1.0)))


def rounded(value: float) -> float:
    """A number as the 16 characters of a DS hold it, PS3.5 6.2."""
    return float(format_number_as_ds(float(value)))


def numbers(values: Any) -> list[str]:
    """Numbers as DS."""
    return [format_number_as_ds(float(value)) for value in values]
