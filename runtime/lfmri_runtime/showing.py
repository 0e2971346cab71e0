"""The report page of one enhanced scan: what `lfmri report` and `lfmri enhance --report` write."""

from pathlib import Path

import numpy as np

from lfmri_runtime.comparison import Comparison, compare
from lfmri_runtime.evaluation import Evaluation, evaluate
from lfmri_runtime.lpips import Lpips
from lfmri_runtime.page import Panel, write_page


def score(comparison: Comparison, *, axis: int) -> dict[str, Evaluation]:
    """Score every volume of a comparison that has a reference, slice by slice normal to `axis`.

    Slices are numbered as the enhanced scan's own in RAS voxel order, from 0.
    """
    if comparison.reference is None:
        return {}
    lpips = Lpips()
    first = comparison.first[axis]
    return {
        name: evaluate(volume, comparison.reference, axis=axis, mask=comparison.mask, lpips=lpips, first=first)
        for name, volume in comparison.volumes.items()
    }


def show(
    page: Path,
    enhanced: Path,
    *,
    scan: Path | None = None,
    reference: Path | None = None,
    mask: Path | None = None,
    uncertainty: Path | None = None,
    axis: int = 1,
) -> dict[str, Evaluation]:
    """Write the page; returns the figures that it shows.

    Args:
        page: the HTML file.
        enhanced: the enhanced scan; its sidecar gives the settings and the scale.
        scan: the low-field input.
        reference: the high-field image; adds figures and error maps.
        mask: of the brain.
        uncertainty: the standard deviation over samples, on the enhanced scan's grid.
        axis: voxel axis in RAS order that scored slices are normal to.
    """
    together = compare(enhanced, reference=reference, mask=mask, scan=scan, uncertainty=uncertainty)
    panels = [Panel(name=name.capitalize(), volume=volume) for name, volume in together.volumes.items()]
    if together.reference is not None:
        panels.append(Panel(name="Reference", volume=together.reference))
        panels += [
            Panel(name=f"Error of {name}", volume=np.abs(volume - together.reference), kind="error")
            for name, volume in together.volumes.items()
        ]
    if together.uncertainty is not None:
        panels.append(Panel(name="Uncertainty", volume=together.uncertainty, kind="uncertainty"))
    figures = score(together, axis=axis)
    write_page(
        page,
        title="Enhanced low-field scan",
        volumes=panels,
        voxel_size=together.voxel_size,
        first=together.first,
        whole=together.whole,
        figures=figures or None,
        settings=settings_of(together.sidecar) or None,
    )
    return figures


def settings_of(sidecar: dict[str, object], prefix: str = "") -> dict[str, object]:
    """A sidecar as flat names and plain values, for people to read."""
    flat: dict[str, object] = {}
    for name, value in sidecar.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if name == "intensity":
            continue
        if isinstance(value, dict):
            flat |= settings_of(value, prefix=f"{label}: ")
        elif isinstance(value, list):
            flat[label] = ", ".join(map(str, value)) or "none"
        else:
            flat[label] = value
    return flat
