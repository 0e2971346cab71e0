"""The step graph: one Euler step of a trained network as ONNX, opset 20, dynamic batch and sides."""

import copy
import io
import logging
import warnings

import onnx
import torch
from torch import nn

from lfmri_runtime.contract import ArraySpec
from lfmri_trainer.flow import EulerStep
from lfmri_trainer.network.unet import UNet

#: TensorRT 10.0 to 10.3 read up to 20; from 23 on `Attention` appears, which TensorRT-RTX refuses in float32.
OPSET = 20
#: Sides of the example that is traced, in multiples of the network's own.
EXAMPLE_MULTIPLES = (4, 6)


def half_weights(network: UNet) -> UNet:
    """Convert a network to float16 in place; its time embedding stays in float32, where half precision would lose."""
    exact = copy.deepcopy(network.time_embedding)
    network.half()
    network.time_embedding = exact
    return network


def export_step(network: UNet, *, prediction: str) -> bytes:
    """Trace one Euler step, (x_t, y, t, dt) -> x_next, float32 in and out.

    Args:
        network: in evaluation mode, float32 or with half weights.
        prediction: what its output is read as.

    Returns:
        the serialised ONNX model, its weights inside.
    """
    step = EulerStep(network, prediction=prediction).eval()
    multiple = network.configuration.multiple
    height, width = (multiple * n for n in EXAMPLE_MULTIPLES)
    # Four tensors of their own: the tracer takes one tensor in two places for one input.
    example = (*(torch.zeros(2, 1, height, width) for _ in range(2)), *(torch.full((2,), 0.5) for _ in range(2)))
    batch, h, w = (torch.export.Dim(name, min=1, max=4096 // multiple) for name in ("batch", "h", "w"))
    sides = {0: batch, 2: multiple * h, 3: multiple * w}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own deprecations say nothing about the graph
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            step,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["x_t", "y", "t", "dt"],
            output_names=["x_next"],
            dynamic_shapes=(sides, sides, {0: batch}, {0: batch}),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return _strip(program.model_proto)


def array_specs(multiple: int, *, y_limit: float) -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
    """What the contract says of the graph's inputs and outputs."""
    image = ("batch", "1", f"{multiple}*h", f"{multiple}*w")
    inputs = (
        ArraySpec(name="x_t", dtype="float32", shape=image, range=None),
        ArraySpec(name="y", dtype="float32", shape=image, range=(0.0, y_limit)),
        ArraySpec(name="t", dtype="float32", shape=("batch",), range=(0.0, 1.0)),
        ArraySpec(name="dt", dtype="float32", shape=("batch",), range=(0.0, 1.0)),
    )
    return inputs, (ArraySpec(name="x_next", dtype="float32", shape=image, range=None),)


def _strip(model: onnx.ModelProto) -> bytes:
    """Drop the tracer's notes (stack traces with paths of the exporting machine) and check the model."""
    model.doc_string = ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def parameter_precision(network: nn.Module) -> str:
    """float16 where most weights are half, else float32."""
    halves = sum(p.numel() for p in network.parameters() if p.dtype == torch.float16)
    return "float16" if 2 * halves > sum(p.numel() for p in network.parameters()) else "float32"
