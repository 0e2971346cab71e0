"""Cutting a step graph in parts that OpenVINO runs in precisions of their own, one after the other.

Asked for bfloat16, OpenVINO computes the time embedding in it too: the arguments of its sines are hundreds of radians,
which bfloat16 knows to one or two. A step at t = 0 does not feel it; at any other t the fast sines are noise. So this
part, a few vectors, becomes a model of its own that runs in float32.

So does the last convolution, which makes the image: its weights, and what goes into it, rounded, cost the result more
than all the rounding before.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

#: Names of what one part hands to the others.
HANDED = "time_{}"
HIDDEN = "hidden"


def split_time(openvino: Any, model: Any) -> tuple[Any, Any]:
    """Cut off what hangs on the time alone.

    Args:
        openvino: the module.
        model: of static shapes, with the inputs x_t, y, t and dt; it is taken apart.

    Returns:
        The time's part, which gives time_0, time_1, ...; and the image's, with these as more inputs, and of t nothing
        but its length.
    """
    (t,) = (p for p in model.get_parameters() if "t" in p.output(0).get_names())
    timely = _timely(model, t)
    frontier = [
        (output, [i for i in output.get_target_inputs() if _name(i.get_node()) not in timely and not _shape(i)])
        for node in model.get_ordered_ops()
        if _name(node) in timely
        for output in node.outputs()
    ]
    handed = [(output, targets) for output, targets in frontier if targets]
    build = openvino.opset13
    results = [build.result(output) for output, _ in handed]
    for number, result in enumerate(results):
        result.output(0).set_names({HANDED.format(number)})
    time = openvino.Model(results, [t]).clone()
    parameters = []
    for number, (output, targets) in enumerate(handed):
        parameter = build.parameter(output.get_shape(), output.get_element_type())
        parameter.output(0).set_names({HANDED.format(number)})
        for target in targets:
            target.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    return time, openvino.Model(model.get_results(), [*model.get_parameters(), *parameters])


def split_last(openvino: Any, model: Any) -> tuple[Any, ...]:
    """Cut before the last convolution; a model without one stays whole.

    Args:
        openvino: the module.
        model: with one result; it is taken apart.

    Returns:
        The part before it, which gives `hidden`; and the rest, with it as one more input. What goes round the last
        residual blocks is still rounded to bfloat16: it is in the layout of convolutions, and float32 is slow to bring
        into another.
    """
    build = openvino.opset13
    last = next((node for node in _before(model.get_results()[0]) if node.get_type_name() == "Convolution"), None)
    if last is None:
        return (model,)
    hidden = last.input_value(0)
    for target in _skipped(hidden.get_node()):
        narrow = build.convert(target.get_source_output(), "bf16")
        target.replace_source_output(build.convert(narrow, hidden.get_element_type()).output(0))
    result = build.result(hidden)
    parameter = build.parameter(hidden.get_shape(), hidden.get_element_type())
    last.input(0).replace_source_output(parameter.output(0))
    for end in (result, parameter):
        end.output(0).set_names({HIDDEN})
    parameters = [*model.get_parameters(), parameter]
    return _model(openvino, result, parameters), _model(openvino, model.get_results()[0], parameters)


class Parts:
    """One inference of compiled parts, one after the other; used by one thread at a time."""

    def __init__(self, compiled: Sequence[Any]) -> None:
        self._requests = [part.create_infer_request() for part in compiled]

    def infer(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t)."""
        times = np.full(len(x_t), t, dtype=np.float32)
        known = {"x_t": x_t, "y": y, "t": times, "dt": np.full_like(times, dt)}
        for request in self._requests:
            asked = {value.any_name for value in request.model_inputs}
            found = request.infer({name: known[name] for name in asked}, share_inputs=True, share_outputs=True)
            known |= {value.any_name: array for value, array in found.items()}
        result: Float32Array = next(iter(found.values())).copy()  # its memory is used again
        return result


def _timely(model: Any, t: Any) -> set[str]:
    """Names of the nodes that hang on t and on nothing else that varies."""
    fixed: set[str] = set()
    timely = {_name(t)}
    for node in model.get_ordered_ops():
        sources = {_name(source) for source in _sources(node)}
        kind = node.get_type_name()
        if kind in ("Constant", "ShapeOf") or (sources and sources <= fixed):
            fixed.add(_name(node))
        elif kind != "Result" and sources and sources <= fixed | timely:
            timely.add(_name(node))
    return timely


def _skipped(total: Any) -> list[Any]:
    """What comes to a sum from a convolution, through its bias and further sums alone: round the residual blocks."""
    found = []
    for target in total.inputs():
        node = target.get_source_output().get_node()
        if node.get_type_name() == "Add":
            biased = any(source.get_type_name() == "Convolution" for source in _sources(node))
            found += [target] if biased else _skipped(node)
    return found


def _before(node: Any) -> Iterator[Any]:
    """A node and all that it hangs on, the nearest first."""
    row, seen = [node], {_name(node)}
    for one in row:
        yield one
        new = [source for source in _sources(one) if _name(source) not in seen]
        seen |= {_name(source) for source in new}
        row += new


def _model(openvino: Any, result: Any, parameters: Sequence[Any]) -> Any:
    """A model of its own, with those of the parameters that its result hangs on."""
    used = {_name(node) for node in _before(result)}
    return openvino.Model([result], [p for p in parameters if _name(p) in used]).clone()


def _sources(node: Any) -> list[Any]:
    return [value.get_source_output().get_node() for value in node.inputs()]


def _name(node: Any) -> str:
    """Unique in a model."""
    name: str = node.get_friendly_name()
    return name


def _shape(target: Any) -> bool:
    """Whether only the length is asked for, which is known."""
    kind: str = target.get_node().get_type_name()
    return kind == "ShapeOf"
