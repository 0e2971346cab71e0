"""The JSON file beside an enhanced scan: how it was made, and the scale that its intensities stand on.

It names no file and no header text, since either may name a patient; the input is known by its sha256.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.decoding import decode
from lfmri_runtime.enhancer import Enhanced
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.intensity import HighFieldStandard, LowFieldScale
from lfmri_runtime.machine import versions
from lfmri_runtime.volume import SUFFIXES

#: A sidecar is a few kilobytes; more than this is not one.
MAX_BYTES = 1 << 20


class Source(Protocol):
    """What a sidecar says of its input: a `Scan` has it, and a DICOM series."""

    @property
    def data(self) -> NDArray[np.float32]:
        """Voxels, (i, j, k)."""

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Voxel edge lengths, mm."""

    @property
    def notes(self) -> tuple[str, ...]:
        """One line each for the user."""


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """How the enhanced scan's intensities relate to the standard scale.

    Attributes:
        scale: enhanced intensity that stands for 1.
        low_field: scaling of the input.
        high_field: the standard scale.
    """

    scale: float
    low_field: LowFieldScale
    high_field: HighFieldStandard


def sidecar_path(scan: Path) -> Path:
    """The sidecar of an image file: its name with .json in place of the image's suffix."""
    name = scan.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return scan.with_name(f"{name}.json")


def describe(
    bundle: Bundle, scan: Source, enhanced: Enhanced, *, input_sha256: str, seconds: dict[str, float]
) -> dict[str, Any]:
    """Everything that the sidecar says.

    Args:
        bundle: that was used.
        scan: the input.
        enhanced: the result.
        input_sha256: of the input file.
        seconds: of the stages outside the core, such as reading and writing.
    """
    contract = bundle.contract
    intensity = Intensity(
        scale=enhanced.scale, low_field=contract.processing.low_field, high_field=contract.processing.high_field
    )
    return {
        "bundle": describe_bundle(bundle),
        "input": {
            "sha256": input_sha256,
            "shape": list(scan.data.shape),
            "voxel_size_mm": [round(size, 4) for size in scan.voxel_size],
        },
        **enhanced.report,
        "seconds": {**seconds, **enhanced.report["seconds"]},
        "intensity": asdict(intensity),
        "versions": versions(enhanced.report["backend"]["name"]),
        "trained_on": contract.training.get("training_subjects", []),
        "intended_use": contract.intended_use,
        "notes": [*scan.notes, *enhanced.notes],
    }


def describe_bundle(bundle: Bundle) -> dict[str, str]:
    """By what an output was derived: name, version and sha256."""
    return {"name": bundle.contract.name, "version": bundle.contract.version, "sha256": bundle.sha256}


def read_sidecar(scan: Path) -> dict[str, Any] | None:
    """Read the sidecar of an enhanced scan; None where there is none.

    Raises:
        InputRefused: it is not JSON, or not an object.
    """
    path = sidecar_path(scan)
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise TypeError("not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputRefused(f"{path}: {error}; expected the sidecar that `lfmri enhance` wrote: enhance again") from None
    return document


def intensity_of(document: dict[str, Any], path: Path) -> Intensity:
    """The intensity section of a sidecar, which was read from `path`.

    Raises:
        InputRefused: it is missing or not understood.
    """
    try:
        intensity: Intensity = decode(Intensity, document.get("intensity"), "intensity")
    except ValueError as error:
        raise InputRefused(f"{path}: {error}; expected what `lfmri enhance` wrote: enhance again") from None
    return intensity
