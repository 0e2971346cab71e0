"""The exported step graph of a real, small network against PyTorch's own sampler, and the gate that compares them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lfmri_export.gate import Parity, check_parity, check_structure, measure_parity
from lfmri_export.graph import OPSET, array_specs, export_step, half_weights, parameter_precision
from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.metrics import psnr
from lfmri_runtime.sampler import euler, uniform_time_grid
from lfmri_trainer.flow import sample
from lfmri_trainer.network.unet import UNet, UNetConfiguration

from .bundles import MakeBundle

Float32Array = NDArray[np.float32]

SMALL = UNetConfiguration(
    widths=(8, 8),
    branch_channels=2,
    fused_channels=8,
    time_width=8,
    bottleneck_blocks=False,
    widening_upsample=False,
    normalised_output=True,
)
#: Least PSNR against PyTorch by the precision of the weights, dB.
LEAST = {"float32": 100.0, "float16": 60.0}
STEPS = (1, 2, 5)
INPUTS, OUTPUTS = array_specs(SMALL.multiple, y_limit=2.5)


def small_network(seed: int = 3) -> UNet:
    torch.manual_seed(seed)
    return UNet(SMALL).eval()


def images(shape: tuple[int, ...] = (2, 1, 48, 40)) -> tuple[Float32Array, Float32Array]:
    """Noise and a condition."""
    rng = np.random.default_rng(8)
    return rng.standard_normal(shape, np.float32), rng.random(shape, np.float32)


def torch_result(x_0: Float32Array, y: Float32Array, *, steps: int, prediction: str) -> Float32Array:
    tensors = (torch.from_numpy(array) for array in (x_0, y))
    result: Float32Array = sample(small_network(), *tensors, steps=steps, prediction=prediction).numpy()
    return result


@pytest.fixture(scope="module")
def graphs() -> Mapping[tuple[str, str], bytes]:
    """Exported graphs by precision and prediction."""
    half = half_weights(small_network())
    assert parameter_precision(half) == "float16"
    return {
        ("float32", "x_1"): export_step(small_network(), prediction="x_1"),
        ("float32", "velocity"): export_step(small_network(), prediction="velocity"),
        ("float16", "x_1"): export_step(half, prediction="x_1"),
    }


@pytest.fixture
def model(graphs: Mapping[tuple[str, str], bytes]) -> onnx.ModelProto:
    return onnx.load_from_string(graphs["float32", "x_1"])


@pytest.fixture
def open_step(make_bundle: MakeBundle) -> Callable[[onnx.ModelProto], Step]:
    """Open a graph the way the runtime does, out of a bundle."""
    return lambda model: open_backend(open_bundle(make_bundle(model=model, inputs=INPUTS, outputs=OUTPUTS)), threads=1)


VARIANTS = [("float32", "x_1"), ("float32", "velocity"), ("float16", "x_1")]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("precision", "prediction"), VARIANTS)
def test_the_runtimes_loop_is_the_pytorch_sampler(
    graphs: Mapping[tuple[str, str], bytes],
    open_step: Callable[[onnx.ModelProto], Step],
    precision: str,
    prediction: str,
    steps: int,
) -> None:
    x_0, y = images()
    step = open_step(onnx.load_from_string(graphs[precision, prediction]))
    found = euler(step, x_0, y, uniform_time_grid(steps))
    expected = torch_result(x_0, y, steps=steps, prediction=prediction)
    span = float(np.ptp(expected))
    assert span > 0.5, "the result is an image"
    assert psnr(found, expected, data_range=span) >= LEAST[precision]
    assert found.dtype == np.float32


@pytest.mark.parametrize(("precision", "prediction"), VARIANTS)
def test_the_graph_has_the_contracts_arrays_and_nothing_of_the_exporting_machine(
    graphs: Mapping[tuple[str, str], bytes], precision: str, prediction: str
) -> None:
    content = graphs[precision, prediction]
    model = onnx.load_from_string(content)
    check_structure(model, INPUTS, OUTPUTS, opset=20)
    assert OPSET == 20
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert len(model.functions) == 0
    assert not model.doc_string
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    for trace in (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), ".py", "site-packages"):
        assert trace.encode() not in content
    halves = sum(w.data_type == onnx.TensorProto.FLOAT16 for w in model.graph.initializer)
    assert (halves > 20) == (precision == "float16")


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 1, 64, 30), (5, 1, 34, 96)])
def test_batch_and_sides_are_free(
    model: onnx.ModelProto, open_step: Callable[[onnx.ModelProto], Step], shape: tuple[int, ...]
) -> None:
    x_0, y = images(shape)
    found = euler(open_step(model), x_0, y, uniform_time_grid(2))
    expected = torch_result(x_0, y, steps=2, prediction="x_1")
    assert psnr(found, expected, data_range=float(np.ptp(expected))) >= LEAST["float32"]


def test_each_image_of_a_batch_has_its_own_times(graphs: Mapping[tuple[str, str], bytes]) -> None:
    session = onnxruntime.InferenceSession(graphs["float32", "x_1"], providers=["CPUExecutionProvider"])
    x_t, y = images()
    t, dt = np.array([0.1, 0.6], np.float32), np.array([0.5, 0.2], np.float32)
    (together,) = session.run(None, {"x_t": x_t, "y": y, "t": t, "dt": dt})
    for n in range(2):
        part = slice(n, n + 1)
        (alone,) = session.run(None, {"x_t": x_t[part], "y": y[part], "t": t[part], "dt": dt[part]})
        np.testing.assert_allclose(alone[0], together[n], atol=1e-5)


# The gate: structure


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _name(model: onnx.ModelProto) -> None:
    rename(model, "y", "condition")


def _type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _output_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _fixed_side(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 64


def _other_symbol(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[3].dim_param = "2*h"


def _missing_axis(model: onnx.ModelProto) -> None:
    del model.graph.output[0].type.tensor_type.shape.dim[3]


def _order(model: onnx.ModelProto) -> None:
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend([inputs[1], inputs[0], *inputs[2:]])


def _extra_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("x_1", onnx.TensorProto.FLOAT, [1]))


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_name, "condition"),
        (_type, "float16"),
        (_output_type, "float16"),
        (_fixed_side, "'64'"),
        (_other_symbol, r"'2\*h', '2\*h'"),
        (_missing_axis, "has the outputs"),
        (_order, "has the inputs"),
        (_extra_output, "has the outputs"),
        (_opset, "expected ai.onnx 20"),
    ],
)
def test_another_structure_is_refused(
    model: onnx.ModelProto, change: Callable[[onnx.ModelProto], None], match: str
) -> None:
    check_structure(model, INPUTS, OUTPUTS, opset=OPSET)
    change(model)
    with pytest.raises(BundleRefused, match=match):
        check_structure(model, INPUTS, OUTPUTS, opset=OPSET)


# The gate: values


def parity(step: Step) -> list[Parity]:
    x_0, y = images((2, 1, 64, 64))
    results = {steps: torch_result(x_0, y, steps=steps, prediction="x_1") for steps in (1, 2)}
    return measure_parity(step, x_0, y, results, y)


def perturb(model: onnx.ModelProto, relative: float) -> None:
    """Change every weight a little."""
    rng = np.random.default_rng(1)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > 8:
            changed = values * (1 + relative * rng.standard_normal(values.shape)).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(changed, weight.name))


def test_the_gate_passes_what_is_right(
    graphs: Mapping[tuple[str, str], bytes], open_step: Callable[[onnx.ModelProto], Step]
) -> None:
    for precision in ("float32", "float16"):
        rows = parity(open_step(onnx.load_from_string(graphs[precision, "x_1"])))
        assert [row.steps for row in rows] == [1, 2]
        check_parity(rows, precision=precision)
    with pytest.raises(BundleRefused, match=r"expected at least 100.0 dB"):
        check_parity(rows, precision="float32")  # half weights are not float32


@pytest.mark.parametrize(("relative", "precision"), [(1e-2, "float16"), (1e-3, "float32")])
def test_the_gate_refuses_other_weights(
    model: onnx.ModelProto, open_step: Callable[[onnx.ModelProto], Step], relative: float, precision: str
) -> None:
    perturb(model, relative)
    with pytest.raises(BundleRefused, match="nothing was written"):
        check_parity(parity(open_step(model)), precision=precision)


def test_the_gate_refuses_a_graph_with_its_times_swapped(
    model: onnx.ModelProto, open_step: Callable[[onnx.ModelProto], Step]
) -> None:
    for node in model.graph.node:
        node.input[:] = [{"t": "dt", "dt": "t"}.get(name, name) for name in node.input]
    with pytest.raises(BundleRefused, match="nothing was written"):
        check_parity(parity(open_step(model)), precision="float16")


@pytest.mark.parametrize(
    "row",
    [
        Parity(steps=1, psnr=59.9, ssim_difference=0, lpips_difference=0),
        Parity(steps=1, psnr=90, ssim_difference=1.1e-3, lpips_difference=0),
        Parity(steps=1, psnr=90, ssim_difference=0, lpips_difference=1.1e-3),
        Parity(steps=1, psnr=float("nan"), ssim_difference=0, lpips_difference=0),
        Parity(steps=1, psnr=90, ssim_difference=float("nan"), lpips_difference=0),
    ],
)
def test_each_figure_can_refuse(row: Parity) -> None:
    good = Parity(steps=2, psnr=60, ssim_difference=1e-3, lpips_difference=1e-3)
    check_parity([good], precision="float16")
    with pytest.raises(BundleRefused, match="'steps': 1"):
        check_parity([good, row], precision="float16")
