"""Group normalisation as OpenVINO runs it fast in float32.

ONNX has it as a normalisation of x seen as (batch, groups, rest), for which OpenVINO brings every x from the layout of
its convolutions, channels last, to the other one and back: two fifths of a step's time in float32. The same from the
mean and the squares of each channel stays in the one layout. In bfloat16, which rounds these sums, it would be coarse.
"""

from importlib import import_module
from typing import Any

import numpy as np


def normalise_channels_last(openvino: Any, model: Any) -> int:
    """Rewrite the group normalisations of a model, in place.

    Args:
        openvino: the module.
        model: of static shapes.

    Returns:
        how many there were; what looks otherwise is left as it is.
    """
    passes = import_module("openvino.passes")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    groups = [found for node in model.get_ordered_ops() if (found := _group_norm(node))]
    for norm, x, back in groups:
        normalised = _normalised(openvino.opset13, x, norm.get_output_shape(0)[1], norm.get_attributes()["eps"])
        for target in back.output(0).get_target_inputs():
            target.replace_source_output(normalised.output(0))
    model.validate_nodes_and_infer_types()
    return len(groups)


def _group_norm(norm: Any) -> tuple[Any, Any, Any] | None:
    """The normalisation, its (batch, channels, h, w), and the node that gives this shape again; None if it is not one.

    That is: Reshape, MVN over what follows (batch, groups), a scale of 1, a shift of 0, Reshape.
    """
    if norm.get_type_name() != "MVN" or len(norm.get_output_shape(0)) != 3 or not _is(norm, 2):
        return None
    scaled = _only_target(norm, "Multiply")
    shifted = _only_target(scaled, "Add") if scaled and _is(scaled, 1) else None
    back = _only_target(shifted, "Reshape") if shifted and _is(shifted, 0) else None
    into = norm.input_value(0).get_node()
    if back is None or into.get_type_name() != "Reshape":
        return None
    x = into.input_value(0)
    same = len(x.get_shape()) == 4 and x.get_shape() == back.get_output_shape(0)
    return (norm, x, back) if same else None


def _only_target(node: Any, kind: str) -> Any | None:
    """The node that takes this one's values, if it is one alone, of this kind; its shape may be asked for beside."""
    targets = [target.get_node() for target in node.output(0).get_target_inputs()]
    takers = [target for target in targets if target.get_type_name() != "ShapeOf"]
    return takers[0] if len(takers) == 1 and takers[0].get_type_name() == kind else None


def _normalised(build: Any, x: Any, groups: int, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon) over each group, from the mean of each channel and its squares' sum."""
    batch, channels, rows, columns = x.get_shape()
    # Whatever the graph's weights are: in half precision the inverse of a slice's size alone is off by 0.2 %.
    wide = build.convert(x, "f32")

    def shape(*sides: int) -> Any:
        return build.constant(np.array(sides, dtype=np.int64))

    def number(value: float) -> Any:
        return build.constant(np.float32(value))

    def over_group(values: Any) -> Any:
        grouped = build.reshape(values, shape(batch, groups, channels // groups), False)
        return build.reduce_mean(grouped, shape(2), True)

    def of_channel(values: Any) -> Any:
        spread = build.broadcast(values, shape(batch, groups, channels // groups))
        return build.reshape(spread, shape(batch, channels, 1, 1), False)

    root = build.reduce_l2(wide, shape(2, 3), True)
    mean = over_group(build.reduce_mean(wide, shape(2, 3), True))
    square = over_group(build.multiply(build.multiply(root, root), number(1 / (rows * columns))))
    variance = build.relu(build.subtract(square, build.multiply(mean, mean)))
    scale = build.divide(number(1), build.sqrt(build.add(variance, number(epsilon))))
    shift = build.multiply(mean, scale)
    normalised = build.subtract(build.multiply(wide, of_channel(scale)), of_channel(shift))
    return build.convert(normalised, x.get_element_type())


def _is(node: Any, expected: float) -> bool:
    """Whether a node's second input is a constant of nothing but this value."""
    constant = node.input_value(1).get_node()
    return constant.get_type_name() == "Constant" and bool((constant.get_data() == expected).all())
