"""The bundle's contract: what a model takes, gives, and was made of. The trainer begins it, the exporter completes it.

Reading is strict: an unknown key, a missing key, a wrong type or a newer schema refuses the bundle.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from lfmri_runtime import decoding
from lfmri_runtime.calibration import Calibration
from lfmri_runtime.decoding import Mismatch, shorten
from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.intensity import HighFieldStandard, LowFieldScale

#: The schema that this version reads and writes.
SCHEMA = 4
#: What the network's output may be read as.
PREDICTIONS = ("x_1", "velocity")
#: Largest standard deviation of x_0: images lie between 0 and about 1.
MAX_SOURCE_STD = 10.0
#: Largest number of Euler steps, and of samples; more are a typing error.
MAX_STEPS = 1000
#: A contract is a few kilobytes; more than this is not one.
MAX_CONTRACT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Processing:
    """Everything between a scan and the network, shared by trainer and runtime.

    Attributes:
        voxel_size: of the working grid, mm.
        multiple: both slice sides are padded to it, voxels.
        planes: which slices are cut: those that contain the thick axis, or all three where no axis is thick.
        low_field: scaling of the scan.
        high_field: the standard scale of the output.
    """

    voxel_size: float
    multiple: int
    planes: str
    low_field: LowFieldScale
    high_field: HighFieldStandard


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One input or output of the step graph.

    Attributes:
        name: of the array in the graph.
        dtype: numpy's name of its type.
        shape: a symbol (batch, 8*h, 8*w) or a fixed length for each axis.
        range: smallest and largest value it is meant for; None where it has no bound.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    range: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """contract.json.

    Attributes:
        schema: version of this layout.
        name: of the model.
        version: of the model.
        licence: SPDX expression.
        network: name of the network preset.
        parameters: number of learnable parameters.
        prediction: what the network's output is: x_1, or the velocity.
        precision: of the weights in step.onnx, float32 or float16.
        source_std: standard deviation of x_0 ~ N(0, source_std^2 I), on the standard scale; in (0, MAX_SOURCE_STD].
        time_grid: spacing of the Euler steps.
        steps: numbers of steps that were verified, different ones from 1 to MAX_STEPS, at least one; golden.npz holds a
            result for each.
        default_steps: what `lfmri enhance` takes when nothing is asked; one of them.
        uncertainty: what the standard deviation over samples is multiplied by, for the numbers of steps that were
            calibrated; empty where the run had no validation pairs.
        inputs: of step.onnx.
        outputs: of step.onnx.
        processing: from scan to network and back.
        training: summary of the training run, as plain values.
        intended_use: what the model is for, and what it is not for.
        files: sha256 of every other file of the bundle.
    """

    schema: int
    name: str
    version: str
    licence: str
    network: str
    parameters: int
    prediction: str
    precision: str
    source_std: float
    time_grid: str
    steps: tuple[int, ...]
    default_steps: int
    uncertainty: tuple[Calibration, ...]
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    processing: Processing
    training: dict[str, Any]
    intended_use: str
    files: dict[str, str]


def parse_contract(text: str) -> Contract:
    """Read a contract.

    Raises:
        BundleRefused: not JSON, of another schema, not exactly the expected keys and types, or a value out of range.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleRefused(
            f"contract.json is not JSON ({error}); expected the file that `lfmri export` wrote"
        ) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        hint = "update lfmri" if isinstance(schema, int) and schema > SCHEMA else "export the bundle again"
        raise BundleRefused(f"contract.json has schema {shorten(schema)}; this lfmri reads schema {SCHEMA}: {hint}")
    contract: Contract = decode(Contract, document, "contract.json")
    if contract.prediction not in PREDICTIONS:
        raise BundleRefused(
            f"contract.json: prediction is {shorten(contract.prediction)}; expected one of {', '.join(PREDICTIONS)}"
        )
    if not 0 < contract.source_std <= MAX_SOURCE_STD:
        raise BundleRefused(
            f"contract.json: source_std is {contract.source_std:g}; expected above 0 and at most {MAX_SOURCE_STD:g}: "
            "export again"
        )
    steps = contract.steps
    # Without a number of steps the golden check would compare nothing, and pass.
    if not steps or len(set(steps)) < len(steps) or not all(1 <= number <= MAX_STEPS for number in steps):
        raise BundleRefused(
            f"contract.json: steps is {shorten(steps)}; expected one or more different numbers from 1 to {MAX_STEPS}: "
            "export again"
        )
    if contract.default_steps not in steps:
        raise BundleRefused(
            f"contract.json: default_steps is {shorten(contract.default_steps)}; expected one of the verified "
            f"{shorten(steps)}: export again"
        )
    for number, calibration in enumerate(contract.uncertainty):
        if calibration.scale <= 0:
            raise BundleRefused(
                f"contract.json: uncertainty[{number}].scale is {calibration.scale:g}; expected above 0: export again"
            )
    return contract


def render(value: Any) -> str:
    """A dataclass as indented JSON text, ending in a newline."""
    return json.dumps(dataclasses.asdict(value), indent=2, allow_nan=False) + "\n"


def decode(kind: Any, value: Any, where: str) -> Any:
    """Build a part of the contract from JSON values, strictly.

    Raises:
        BundleRefused: naming the place, what was found and what was expected.
    """
    try:
        return decoding.decode(kind, value, where)
    except Mismatch as error:
        raise BundleRefused(f"{error}: export it again") from None
