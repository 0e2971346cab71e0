"""The gate: no bundle is written unless its step graph does what the PyTorch sampler does.

Structure first (names, types, axes, operator set), then values, on real slices and the same noise.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.contract import ArraySpec
from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.lpips import Lpips
from lfmri_runtime.metrics import psnr, ssim
from lfmri_runtime.sampler import euler, uniform_time_grid

Float32Array = NDArray[np.float32]

#: Least PSNR against the PyTorch sampler in float32, by the precision of the weights. A float32 graph differs by the
#: order of its sums (about 125 dB), half weights by their rounding (about 80 dB); a wrong graph is far below both.
LEAST_PSNR = {"float32": 100.0, "float16": 60.0}
#: Largest difference of SSIM and of LPIPS between the two samplers' results, each against the same reference.
LARGEST_DIFFERENCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a step graph is from the PyTorch sampler after some number of steps."""

    steps: int
    psnr: float
    ssim_difference: float
    lpips_difference: float

    def passes(self, precision: str) -> bool:
        """Whether all three lie within the gate."""
        return (
            self.psnr >= LEAST_PSNR[precision]
            and self.ssim_difference <= LARGEST_DIFFERENCE
            and self.lpips_difference <= LARGEST_DIFFERENCE
        )


def check_structure(
    model: onnx.ModelProto, inputs: tuple[ArraySpec, ...], outputs: tuple[ArraySpec, ...], *, opset: int
) -> None:
    """Compare a graph's arrays and operator set with what the contract will say.

    Raises:
        BundleRefused: naming the first difference.
    """
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found.get("ai.onnx") != opset:
        raise BundleRefused(f"step.onnx uses the operator sets {found}; expected ai.onnx {opset}")
    for kind, specs, values in (("input", inputs, model.graph.input), ("output", outputs, model.graph.output)):
        described = [_describe(value) for value in values]
        expected = [(spec.name, spec.dtype, spec.shape) for spec in specs]
        if described != expected:
            raise BundleRefused(f"step.onnx has the {kind}s {described}; expected {expected}")


def measure_parity(
    step: Step, x_0: Float32Array, y: Float32Array, results: Mapping[int, Float32Array], reference: Float32Array
) -> list[Parity]:
    """Run the graph's Euler loop on the noise of the PyTorch sampler and compare.

    Args:
        step: the opened graph.
        x_0: noise, (batch, 1, h, w).
        y: the condition, same shape.
        results: the PyTorch sampler's result in float32 for each number of steps.
        reference: x_1, same shape; both results are scored against it.

    Raises:
        BundleRefused: the graph gives values that are not finite, which have no score.
    """
    lpips = Lpips()
    rows = []
    for steps, expected in results.items():
        found = euler(step, x_0, y, uniform_time_grid(steps))
        if not np.isfinite(found).all():
            raise BundleRefused(f"step.onnx gives values that are not finite after {steps} steps: nothing was written")
        pair = [_scores(image[:, 0], reference[:, 0], lpips) for image in (found, expected)]
        rows.append(
            Parity(
                steps=steps,
                psnr=psnr(found, expected),
                ssim_difference=float(np.abs(pair[0][0] - pair[1][0]).max()),
                lpips_difference=float(np.abs(pair[0][1] - pair[1][1]).max()),
            )
        )
    return rows


def check_parity(rows: list[Parity], *, precision: str) -> None:
    """Refuse what does not pass.

    Raises:
        BundleRefused: naming the number of steps and its figures.
    """
    for row in rows:
        if not row.passes(precision):
            raise BundleRefused(
                f"step.onnx ({precision}) differs from the PyTorch sampler: {asdict(row)}; expected at least "
                f"{LEAST_PSNR[precision]} dB and differences of at most {LARGEST_DIFFERENCE}: nothing was written"
            )


def _scores(images: Float32Array, references: Float32Array, lpips: Lpips) -> tuple[NDArray[np.float64], Float32Array]:
    similarity = np.array([ssim(image, reference) for image, reference in zip(images, references, strict=True)])
    return similarity, lpips(images, references)


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[str, ...]]:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    shape = tuple(axis.dim_param or str(axis.dim_value) for axis in tensor.shape.dim)
    return value.name, dtype, shape
