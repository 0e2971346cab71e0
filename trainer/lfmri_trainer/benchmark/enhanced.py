"""A test scan enhanced whole, and the check of consistency on it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from lfmri_runtime import consistency
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.geometry import AXES, WorkingGrid
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.pairs import low_path, read_volume

Float32Array = NDArray[np.float32]

#: Modules that a number of the check stands on: the check's, and what enhances the scan.
CODE = (
    __name__,
    *(f"lfmri_runtime.{name}" for name in ("consistency", "contrast", "forward", "noise")),
    *(f"lfmri_runtime.{name}" for name in ("geometry", "orientation", "intensity", "tissue", "resample")),
    *(f"lfmri_runtime.{name}" for name in ("enhancer", "draws", "sampler", "slices")),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class EnhancedScan:
    """One scan, enhanced at one step.

    Attributes:
        pair: its name.
        place: the working grid and the scan's.
        scan: in RAS order, in its own unit.
        x_1: enhanced, on the working grid, on the standard scale.
        scale: intensity of the scan that became 1.
        limit: the scan was clipped there after scaling.
        thick: the thick axis, 0 to 2.
        thickness: of the slices as they were simulated, mm.
    """

    pair: str
    place: WorkingGrid
    scan: Float32Array
    x_1: Float32Array
    scale: float
    limit: float
    thick: int
    thickness: float

    @classmethod
    def of(cls, pairs: Path, enhancer: Enhancer, pair: PairParameters) -> Self:
        """Read a pair's scan and enhance it."""
        processing = enhancer.bundle.contract.processing
        data, affine = read_volume(low_path(pairs, pair))
        enhanced = enhancer.enhance(data, affine, steps=1, thick_axis=pair.thick_axis)
        place = WorkingGrid.of_scan(data.shape, affine, voxel_size=processing.voxel_size)
        thick = AXES.index(pair.thick_axis)
        return cls(
            pair=pair.pair,
            place=place,
            scan=place.to_ras(data),
            x_1=place.to_ras(enhanced.mean) / np.float32(enhanced.scale),
            scale=enhanced.scale,
            limit=processing.low_field.limit,
            thick=thick,
            thickness=place.scan_spacing[thick] * pair.thickness / pair.spacing,
        )

    def check(self, volume: Float32Array, *, thickness: float | None) -> consistency.Consistency:
        """Check a volume on the working grid against the scan; None takes the slice spacing for the thickness.

        Raises:
            InputRefused: too little head, or no noise.
        """
        found = consistency.check(
            self.place,
            volume,
            self.scan,
            scale=self.scale,
            limit=self.limit,
            thick=self.thick,
            thickness=thickness,
        )
        if found is None:
            raise InputRefused(f"{self.pair}: too little head or no noise to check; expected a whole scan")
        return found
