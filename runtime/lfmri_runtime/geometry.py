"""From a scan's voxels to the working grid and back: RAS order, the thick axis, the contract's voxel size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.orientation import Volume, orientation_back, orientation_of, reorient, reorient_affine
from lfmri_runtime.resample import SAME_SPACING, apply_along, regrid_matrix, spline_matrix

Float32Array = NDArray[np.float32]
Affine = NDArray[np.float64]

#: Voxel axes in RAS order, by the letter that the command line uses.
AXES = "RAS"
#: An axis is thick when its voxels are this many times as long as the next longest.
THICK_RATIO = 1.5
#: A regridded thick axis has less than this share of the other axes' energy in the upper half of its spectrum.
EMPTY_SPECTRUM = 0.1
#: Working grids above this many voxels are refused before memory is taken.
MAX_WORKING_VOXELS = 512**3
#: Of a voxel: affines in float32 give voxel sizes that are off by 1e-7, and a whole number of voxels must stay one.
ROUNDING = 1e-3
#: Voxels along one axis: the matrices that resample it have this many rows and columns.
MAX_AXIS = 2048


@dataclass(frozen=True)
class WorkingGrid:
    """An axis-aligned grid that starts at the centre of the scan's first voxel and ends before its last.

    Nothing is extrapolated: the grid covers the span of the voxel centres.

    Attributes:
        affine: of the grid, RAS voxel order, mm.
        shape: voxels on each axis.
        scan_affine: of the scan after reorientation to RAS voxel order.
        scan_shape: of the scan after reorientation.
        orientation: nibabel's orientation array of the scan's own voxel order.
    """

    affine: Affine
    shape: tuple[int, int, int]
    scan_affine: Affine
    scan_shape: tuple[int, int, int]
    orientation: NDArray[np.float64]

    @classmethod
    def of_scan(cls, shape: tuple[int, int, int], affine: Affine, *, voxel_size: float) -> "WorkingGrid":
        """The working grid of a scan.

        Args:
            shape: of the scan in its own voxel order.
            affine: of the scan.
            voxel_size: of the working grid, mm; an axis within 0.1 % of it keeps its own spacing.

        Raises:
            InputRefused: an affine that is none; the working grid would exceed MAX_WORKING_VOXELS, or an axis MAX_AXIS.
        """
        _check(affine)
        orientation = orientation_of(affine)
        ras_affine = reorient_affine(affine, orientation, shape)
        permuted = [0, 0, 0]
        for axis, target in enumerate(orientation[:, 0].astype(int)):
            permuted[target] = shape[axis]
        spacing = voxel_sizes(ras_affine)
        new_shape, new_affine = [], ras_affine.copy()
        for axis, length in enumerate(permuted):
            if abs(spacing[axis] - voxel_size) <= SAME_SPACING * voxel_size:
                new_shape.append(length)
                continue
            new_shape.append(int(np.floor((length - 1) * spacing[axis] / voxel_size + ROUNDING)) + 1)
            new_affine[:3, axis] *= voxel_size / spacing[axis]
        if np.prod(new_shape, dtype=np.float64) > MAX_WORKING_VOXELS or max(*new_shape, *permuted) > MAX_AXIS:
            own, working = (" x ".join(map(str, shape)) for shape in (permuted, new_shape))
            raise InputRefused(
                f"the scan of {own} voxels covers {working} voxels of {voxel_size} mm; expected at most "
                f"{MAX_WORKING_VOXELS}, and {MAX_AXIS} along an axis: crop it to the head, or check its voxel sizes"
            )
        grid, scan = (tuple(int(n) for n in s) for s in (new_shape, permuted))
        return cls(new_affine, grid, ras_affine, scan, orientation)  # type: ignore[arg-type]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes of the working grid, mm, RAS order."""
        return voxel_sizes(self.affine)

    @property
    def scan_spacing(self) -> tuple[float, float, float]:
        """Voxel sizes of the scan, mm, RAS order."""
        return voxel_sizes(self.scan_affine)

    def to_ras(self, data: Volume) -> Volume:
        """Bring the scan's voxels (or a mask's) into RAS order; a view."""
        return reorient(data, self.orientation)

    def from_ras(self, volume: Float32Array) -> Float32Array:
        """Bring a volume in RAS order back into the scan's own voxel order."""
        return np.ascontiguousarray(reorient(volume, orientation_back(self.orientation)))

    def regrid(self, volume: Float32Array) -> Float32Array:
        """Resample a scan in RAS order onto the working grid: cubic, a matrix per axis."""
        for axis in range(3):
            matrix = regrid_matrix(self.scan_shape[axis], self.scan_spacing[axis], self.shape[axis], self.spacing[axis])
            volume = apply_along(volume, matrix, axis)
        return volume

    def to_scan_order(self, volume: Float32Array) -> tuple[Float32Array, Affine]:
        """Bring a working volume into the scan's own voxel order; its affine comes with it."""
        back = orientation_back(self.orientation)
        return np.ascontiguousarray(reorient(volume, back)), reorient_affine(self.affine, back, self.shape)

    def to_scan_grid(self, volume: Float32Array) -> Float32Array:
        """Sample a working volume at the scan's voxel centres, in the scan's own voxel order.

        Slices are sampled, not averaged over their thickness: what was sharpened stays sharp. Voxels of the scan
        that lie beyond the working grid's last centre (less than one working voxel) take its nearest value.
        """
        for axis in range(3):
            ratio = self.scan_spacing[axis] / self.spacing[axis]
            if self.shape[axis] == self.scan_shape[axis] and abs(ratio - 1) <= SAME_SPACING:
                continue
            positions = np.clip(np.arange(self.scan_shape[axis]) * ratio, 0, self.shape[axis] - 1)
            volume = apply_along(volume, spline_matrix(self.shape[axis], positions), axis)
        return self.from_ras(volume)


def _check(affine: Affine) -> None:
    """Refuse what is no invertible transform from voxels to mm."""
    fits = np.shape(affine) == (4, 4) and np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0
    if not fits:
        rows = np.array2string(np.asarray(affine), precision=3, separator=", ").replace("\n", "")
        raise InputRefused(f"the affine is {rows}; expected 4 x 4, finite, voxels to mm: repair the scan's header")


def voxel_sizes(affine: Affine) -> tuple[float, float, float]:
    """Length of each voxel axis, mm."""
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def thick_axis_of(spacing: tuple[float, float, float]) -> int | None:
    """The axis whose voxels are at least THICK_RATIO times as long as the next longest; None if there is none."""
    order = np.argsort(spacing)
    return int(order[2]) if spacing[order[2]] >= THICK_RATIO * spacing[order[1]] else None


def hidden_thick_axis(volume: Float32Array) -> int | None:
    """The axis along which an isotropic volume holds far less detail than along the others: it was regridded.

    Compares the energy above half the Nyquist frequency, as a share of all energy but the mean's, between axes.
    """
    shares = []
    for axis in range(3):
        lines = np.moveaxis(volume, axis, -1)
        lines = lines[:: max(1, lines.shape[0] // 48), :: max(1, lines.shape[1] // 48)]
        power = np.abs(np.fft.rfft(lines - lines.mean(axis=-1, keepdims=True), axis=-1)) ** 2
        spectrum = power.sum(axis=(0, 1))
        shares.append(float(spectrum[len(spectrum) // 2 :].sum() / max(spectrum.sum(), 1e-30)))
    order = np.argsort(shares)
    return int(order[0]) if shares[order[0]] < EMPTY_SPECTRUM * shares[order[1]] else None
