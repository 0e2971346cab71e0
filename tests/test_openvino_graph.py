"""What is done to a step graph for OpenVINO changes how it runs, and not what it computes."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lfmri_runtime.backends.openvino_library import import_openvino
from lfmri_runtime.backends.openvino_norm import normalise_channels_last
from lfmri_runtime.backends.openvino_parts import Parts, split_last, split_time
from lfmri_runtime.bundle import STEP, Bundle, open_bundle
from lfmri_trainer.network.presets import build_network

from .bundles import MakeBundle

Float32Array = NDArray[np.float32]
GROUPS = 4


def read(bundle: Bundle, batch: int = 2, rows: int = 32, columns: int = 16) -> Any:
    model = import_openvino().Core().read_model(bundle.read(STEP))
    image = [batch, 1, rows, columns]
    model.reshape({"x_t": image, "y": image, "t": [batch], "dt": [batch]})
    return model


def compiled(*models: Any) -> Parts:
    core = import_openvino().Core()
    return Parts([core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for model in models])


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def group_norm(x: NDArray[Any], *, scale: float = 1, shift: float = 0, axes: int = 3) -> Any:
    """Group normalisation of x's kind as PyTorch's exporter writes it; `axes` counts those of what is normalised."""
    grouped = [*x.shape[:1], GROUPS, -1] + [1] * (axes - 3)
    constants = {
        "grouped": np.array(grouped),
        "scale": np.full(GROUPS, scale, x.dtype),
        "shift": np.full(GROUPS, shift, x.dtype),
        "shape": np.array(x.shape),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "grouped"], ["seen"]),
        helper.make_node("InstanceNormalization", ["seen", "scale", "shift"], ["normalised"], epsilon=1e-5),
        helper.make_node("Reshape", ["normalised", "shape"], ["result"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    values = [helper.make_tensor_value_info(name, kind, x.shape) for name in ("x", "result")]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "norm", values[:1], values[1:], initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return import_openvino().Core().read_model(model.SerializeToString())


def run(model: Any, x: NDArray[Any]) -> Float32Array:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    request = import_openvino().Core().compile_model(model, "CPU", settings).create_infer_request()
    result: Float32Array = request.infer({"x": x})[0].astype(np.float32)
    return result


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (5.0, 1.0), (-3.0, 0.2), (0.0, 0.0)])
def test_group_norm_from_sums_of_channels_is_group_norm(mean: float, deviation: float) -> None:
    spread = np.linspace(0.5, 2, 16, dtype=np.float32)[:, None, None]  # channels of a group differ
    noise = np.random.default_rng(0).standard_normal((2, 16, 24, 8), np.float32)
    x = mean + deviation * spread * noise
    expected = torch.nn.functional.group_norm(torch.from_numpy(x), GROUPS).numpy()
    model = group_norm(x)
    assert normalise_channels_last(import_openvino(), model) == 1
    assert "MVN" not in kinds(model)
    np.testing.assert_allclose(run(model, x), expected, atol=2e-3 if abs(mean) > 10 * deviation else 1e-4)


def test_group_norm_of_half_weights_is_computed_in_full() -> None:
    x = np.random.default_rng(0).standard_normal((1, 16, 184, 72)).astype(np.float16)
    expected = torch.nn.functional.group_norm(torch.from_numpy(x.astype(np.float32)), GROUPS).numpy()
    model = group_norm(x)
    assert normalise_channels_last(import_openvino(), model) == 1
    error = run(model, x) - expected
    assert np.abs(error).max() < 2e-3, "more than rounding to half at the end"
    assert abs(float((error * np.sign(expected)).mean())) < 5e-5, "a gain"


@pytest.mark.parametrize("changed", [{"scale": 2.0}, {"shift": 1.0}, {"axes": 4}])
def test_what_is_no_plain_group_norm_stays(changed: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 16, 24, 8), np.float32)
    model = group_norm(x, **changed)
    expected = run(model.clone(), x)
    assert normalise_channels_last(import_openvino(), model) == 0
    np.testing.assert_array_equal(run(model, x), expected)


def test_every_group_norm_of_the_built_in_model_is_rewritten() -> None:
    model = read(open_bundle())
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in build_network("iqt-cfm").modules())
    assert normalise_channels_last(import_openvino(), model) == norms > 0
    assert kinds(model).count("MVN") == 2  # the transformer's


def test_the_parts_of_the_built_in_model_give_what_the_whole_gives() -> None:
    library, bundle = import_openvino(), open_bundle()
    x_t, y = np.random.default_rng(1).random((2, 2, 1, 32, 16), np.float32)
    time, image = split_time(library, read(bundle))
    before, last = split_last(library, image)
    assert kinds(last).count("Convolution") == 1
    assert {"Sin", "Cos"} & set(kinds(time))
    assert not {"Sin", "Cos"} & set(kinds(before) + kinds(last))
    whole = compiled(read(bundle))
    parts = compiled(time, before, last)
    for t in (0.0, 0.7):
        expected = whole.infer(x_t, y, t, 0.3)
        assert np.abs(expected - x_t).max() > 0.1
        np.testing.assert_allclose(parts.infer(x_t, y, t, 0.3), expected, atol=2e-3)  # what goes round is rounded


def test_a_graph_without_a_convolution_stays_whole(make_bundle: MakeBundle) -> None:
    model = read(open_bundle(make_bundle("noisy")))
    assert split_last(import_openvino(), model) == (model,)
