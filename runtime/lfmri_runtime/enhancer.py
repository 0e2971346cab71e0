"""The one core: a scan and a bundle to an enhanced scan. Every surface is a thin shell around `Enhancer`."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime import consistency
from lfmri_runtime.backends import REFERENCE, Step, open_backend
from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.calibration import describe_uncertainty
from lfmri_runtime.choice import choose
from lfmri_runtime.contract import MAX_STEPS
from lfmri_runtime.draws import Progress, mean_and_deviation
from lfmri_runtime.errors import BundleRefused, InputRefused, UsageError
from lfmri_runtime.geometry import AXES, WorkingGrid, hidden_thick_axis, thick_axis_of
from lfmri_runtime.slices import pad
from lfmri_runtime.trial import Trial

Float32Array = NDArray[np.float32]

#: Slices that pass through the network at once; four take as long a slice on two cores and 0.25 GiB more at 256 x 256.
BATCH = 2
#: Longer seeds would share their upper half with the number of the sample.
SEEDS = 2**32
#: Slices thicker than this, mm, are a typing error.
MAX_THICKNESS = 50.0
GRIDS = ("isotropic", "input")
THICK_AXES = ("auto", *AXES, "none")


@dataclass(frozen=True, eq=False)
class Enhanced:
    """An enhanced scan in the scan's own voxel order and intensity units.

    Attributes:
        mean: mean of the samples.
        std: one standard deviation of the error for each voxel: that of the samples, times the contract's scale for
            the number of steps. 90 % of the voxels of scans like the validation scans lie within 1.645 of it. Where
            the report's uncertainty is not calibrated, a note says why. None for one sample.
        affine: of both, voxel to mm.
        scale: intensity that the standard scale's 1 stands for.
        report: what ran, as plain values.
        notes: one line each for the user.
        residual: what of the scan the enhanced one does not explain, on the scan's own grid, in units of its noise;
            None where there is too little head or no noise to compare with.
    """

    mean: Float32Array
    std: Float32Array | None
    affine: NDArray[np.float64]
    scale: float
    report: dict[str, Any]
    notes: tuple[str, ...]
    residual: Float32Array | None = None


class Enhancer:
    """Enhances scans with one bundle on one back end; opened once, used for many scans.

    The reference back end is the default, so that a library's result does not hang on which extras are installed.

    Args:
        bundle: a verified bundle; None opens the built-in one.
        backend: the reference, whose bytes depend on nothing but the scan and the settings; the name of another one;
            or auto, the fastest that passes the golden check on this machine. All but the reference are checked
            at first use, and remember it in the user's cache.
        precision: None takes the fastest that the back end offers.
        require: refuse where the asked back end or precision is not usable; otherwise another runs, with a note.
        threads: of the network's arithmetic; 0 takes all cores.
        batch: slices that pass through the network at once; changes nothing but speed and memory.
        step: a back end of the caller's own, opened; the settings above it are then not looked at.

    Attributes:
        notes: one line for each back end that is here and was passed over.
        trials: of the back ends that were tried, now or when the choice was made.

    Raises:
        UsageError, BackendMissing, BundleRefused: as `choice.choose`.
    """

    def __init__(
        self,
        bundle: Bundle | None = None,
        *,
        backend: str = REFERENCE,
        precision: str | None = None,
        require: bool = True,
        threads: int = 0,
        batch: int = BATCH,
        step: Step | None = None,
    ) -> None:
        self.bundle = open_bundle() if bundle is None else bundle
        self.notes: tuple[str, ...] = ()
        self.trials: tuple[Trial, ...] = ()
        if step is not None:
            self.step = step
        elif (backend, precision) == (REFERENCE, None):
            self.step = open_backend(self.bundle, threads=threads)
        else:
            choice = choose(self.bundle, backend=backend, precision=precision, require=require, threads=threads)
            self.step, self.notes, self.trials = choice.step, choice.notes, choice.trials
        self.batch = batch

    def enhance(
        self,
        data: Float32Array,
        affine: NDArray[np.float64],
        *,
        steps: int | None = None,
        samples: int = 1,
        seed: int = 0,
        grid: str = "isotropic",
        thick_axis: str = "auto",
        slice_thickness: float | None = None,
        mask: NDArray[np.bool_] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Enhanced:
        """Enhance one scan.

        Args:
            data: (i, j, k), magnitude image in any unit and voxel order.
            affine: voxel to mm, RAS+.
            steps: of the Euler method; None takes the contract's default. One step gives the posterior mean.
            samples: draws of x_0; their mean and scaled standard deviation are returned.
            seed: of the noise.
            grid: isotropic gives the working grid (the contract's voxel size), input the scan's own grid.
            thick_axis: auto reads it from the voxel sizes; R, A or S names it; none cuts all three planes.
            slice_thickness: FWHM of the slice profile, mm, for the check of consistency; None takes the slice spacing.
            mask: where the head or brain is, on the scan's grid; voxels outside become zero before anything else.
            progress: called with (network calls done, network calls in all).

        Raises:
            UsageError: a setting out of its range.
            InputRefused: a scan without three axes or signal, complex, with values that are not finite or an affine
                that is none, or of too many voxels.
            TryAgainLater: too little memory, or a device that failed.
        """
        steps = self.bundle.contract.default_steps if steps is None else steps
        _check(steps=steps, samples=samples, seed=seed, grid=grid, thick_axis=thick_axis)
        if slice_thickness is not None and not 0 < slice_thickness <= MAX_THICKNESS:
            raise UsageError(f"--slice-thickness is {slice_thickness:g}; expected above 0, up to {MAX_THICKNESS:g} mm")
        started = time.perf_counter()
        processing = self.bundle.contract.processing
        if np.ndim(data) != 3 or 0 in np.shape(data):
            raise InputRefused(f"the scan has the shape {np.shape(data)}; expected three axes: give one volume")
        if np.iscomplexobj(data):
            raise InputRefused("the scan is complex; expected a magnitude image: give its modulus")
        mask = None if mask is None else np.asarray(mask, dtype=np.bool_)
        place = WorkingGrid.of_scan(data.shape, affine, voxel_size=processing.voxel_size)
        acquired = np.asarray(data, dtype=np.float32)
        if not np.isfinite(acquired).all():
            raise InputRefused("the scan holds values that are not finite; expected a magnitude image: mend them first")
        data = _masked(acquired, mask)
        scale = processing.low_field.scale_of(data, mask)
        ras = place.to_ras(data)
        thick, notes = _thick_axis(thick_axis, place, ras)
        y = pad(processing.low_field.apply(place.regrid(ras), scale), processing.multiple)
        prepared = time.perf_counter()
        self.step.seconds = 0.0
        mean, std = mean_and_deviation(
            self.step,
            y,
            place.shape,
            thick=thick,
            source_std=self.bundle.contract.source_std,
            steps=steps,
            samples=samples,
            seed=seed,
            batch=self.batch,
            progress=progress,
        )
        sampled = time.perf_counter()
        if not np.isfinite(mean).all():
            raise BundleRefused("the network gave values that are not finite; expected a bundle that passed its gate")
        np.clip(mean, 0, processing.high_field.limit, out=mean)
        found = consistency.check(
            place,
            mean,
            place.to_ras(acquired),
            scale=scale,
            limit=processing.low_field.limit,
            thick=thick,
            thickness=slice_thickness,
            mask=None if mask is None else place.to_ras(mask),
        )
        consistent, warned = consistency.describe(found)
        checked = time.perf_counter()
        mean *= np.float32(scale)
        output, output_affine = _onto(place, mean, grid, affine)
        # The spline between the working grid's voxels swings beyond their range; of the same grid nothing changes.
        np.clip(output, 0, np.float32(processing.high_field.limit) * np.float32(scale), out=output)
        uncertainty: dict[str, Any] = {}
        deviation = None
        if std is not None:
            uncertainty, remarks = describe_uncertainty(
                self.bundle.contract.uncertainty, steps=steps, samples=samples, thick_axis=thick
            )
            std *= np.float32(scale * uncertainty["scale"])
            deviation = _onto(place, std, grid, affine)[0].clip(min=0)
            notes += remarks
        seconds = {
            "prepare": prepared - started,
            "network": self.step.seconds,
            "loop": sampled - prepared - self.step.seconds,
            "check": checked - sampled,
            "restore": time.perf_counter() - checked,
        }
        report = {
            "steps": steps,
            "samples": samples,
            "seed": seed,
            "grid": grid,
            "thick_axis": "none" if thick is None else AXES[thick],
            "backend": {"name": self.step.name, "provider": self.step.provider, "precision": self.step.precision},
            "consistency": consistent,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }
        if uncertainty:
            report["uncertainty"] = uncertainty
        residual = None if found is None else place.from_ras(found.residual)
        return Enhanced(output, deviation, output_affine, scale, report, (*self.notes, *notes, *warned), residual)


def interpolate(data: Float32Array, affine: NDArray[np.float64], *, voxel_size: float) -> Float32Array:
    """A scan on the working grid by cubic interpolation, in its own units and voxel order."""
    place = WorkingGrid.of_scan(data.shape, affine, voxel_size=voxel_size)
    return place.to_scan_order(place.regrid(place.to_ras(data)))[0]


def _onto(
    place: WorkingGrid, volume: Float32Array, grid: str, affine: NDArray[np.float64]
) -> tuple[Float32Array, NDArray[np.float64]]:
    return (place.to_scan_grid(volume), affine) if grid == "input" else place.to_scan_order(volume)


def _masked(data: Float32Array, mask: NDArray[np.bool_] | None) -> Float32Array:
    if mask is None:
        return data
    if mask.shape != data.shape or not mask.any():
        raise InputRefused(
            f"the mask has shape {mask.shape} and {int(mask.sum())} voxels set; expected shape {data.shape} and "
            "some voxels: give a mask on the scan's own grid"
        )
    return np.where(mask, data, np.float32(0))


def _thick_axis(asked: str, place: WorkingGrid, ras: Float32Array) -> tuple[int | None, tuple[str, ...]]:
    if asked != "auto":
        return (None if asked == "none" else AXES.index(asked)), ()
    thick = thick_axis_of(place.scan_spacing)
    hidden = hidden_thick_axis(ras) if thick is None else None
    if hidden is None:
        return thick, ()
    letter = AXES[hidden]
    note = (
        f"axis {letter} holds far less detail than the others although its voxels are no longer: if the scan was "
        f"acquired with thick slices along {letter} and regridded, give --thick-axis {letter}"
    )
    return None, (note,)


def _check(*, steps: int, samples: int, seed: int, grid: str, thick_axis: str) -> None:
    for name, value in (("--steps", steps), ("--samples", samples)):
        if not 1 <= value <= MAX_STEPS:
            raise UsageError(f"{name} is {value}; expected 1 to {MAX_STEPS}")
    if not 0 <= seed < SEEDS:
        raise UsageError(f"--seed is {seed}; expected 0 to {SEEDS - 1}")
    for name, text, allowed in (("--grid", grid, GRIDS), ("--thick-axis", thick_axis, THICK_AXES)):
        if text not in allowed:
            raise UsageError(f"{name} is {text!r}; expected one of {', '.join(allowed)}")
