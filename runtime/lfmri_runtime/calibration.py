"""What an uncertainty map means: the standard deviation over samples, times a scale fitted on validation scans.

The samples of a flow differ less than the truth differs from their mean, and the average over planes narrows them
further. One factor for each number of Euler steps makes up for both, on scans like those that it was fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Of the interval that the scale is fitted by: 90 % of the voxels with signal lie in mean +- 1.645 times the deviation.
FITTED_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A scale of the contract.

    Attributes:
        steps: of the Euler method.
        samples: of each scan that it was fitted with; fewer estimate the deviation worse.
        scale: what the standard deviation over samples is multiplied by, above 0.
        subjects: of the validation split that it was fitted on.
        scans: of these subjects.
        voxels: of these scans.
    """

    steps: int
    samples: int
    scale: float
    subjects: tuple[str, ...]
    scans: int
    voxels: int


def calibration_of(known: Sequence[Calibration], steps: int) -> Calibration | None:
    """The calibration of a number of Euler steps; None where there is none."""
    return next((calibration for calibration in known if calibration.steps == steps), None)


def describe_uncertainty(
    known: Sequence[Calibration], *, steps: int, samples: int, thick_axis: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the deviation is multiplied by and whether it is calibrated then, for the report, and notes for the user.

    Args:
        known: of the contract.
        steps: of the Euler method.
        samples: at least 2.
        thick_axis: None where all three planes are averaged, which no scale was fitted with.

    Returns:
        {"scale": ..., "calibrated": ...} and at most one line.
    """
    found = calibration_of(known, steps)
    if found is None:
        others = ", ".join(str(calibration.steps) for calibration in known)
        only = f", only for {others}" if others else ""
        note = (
            f"the bundle has no calibration for {steps} Euler step{'s' if steps > 1 else ''}{only}: the uncertainty is "
            "the bare standard deviation over samples"
        )
    elif samples < found.samples:
        note = f"the uncertainty's scale was fitted with {found.samples} samples, {samples} were taken: it is rougher"
    elif thick_axis is None:
        note = "the uncertainty's scale was fitted on scans with a thick axis, this one has none: it may be off"
    else:
        return {"scale": found.scale, "calibrated": True}, ()
    return {"scale": 1.0 if found is None else found.scale, "calibrated": False}, (note,)
