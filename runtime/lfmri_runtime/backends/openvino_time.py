"""Taking what hangs on the time alone out of a step graph, for OpenVINO.

Asked for bfloat16, OpenVINO computes the time embedding in it too: the arguments of its sines are hundreds of radians,
which bfloat16 knows to one or two. A step at t = 0 does not feel it; at any other t the fast sines are noise. So this
part, a few vectors, becomes a model of its own that runs in float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

#: Names of what the one model hands to the other.
HANDED = "time_{}"


def split_time(openvino: Any, model: Any) -> tuple[Any, Any]:
    """Split a graph of static shapes in two.

    Args:
        openvino: the module.
        model: with the inputs x_t, y, t and dt; it is taken apart.

    Returns:
        The model of the image's part, with the inputs time_0, time_1, ... more and of t nothing but its length; and
        that of the time's part, which gives them in this order.
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
    time = openvino.Model([build.result(output) for output, _ in handed], [t]).clone()
    parameters = []
    for number, (output, targets) in enumerate(handed):
        parameter = build.parameter(output.get_shape(), output.get_element_type())
        parameter.output(0).set_names({HANDED.format(number)})
        for target in targets:
            target.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    return openvino.Model(model.get_results(), [*model.get_parameters(), *parameters]), time


class TimedRequest:
    """One inference of both parts after the other; used by one thread at a time."""

    def __init__(self, image: Any, time: Any) -> None:
        self._image = image.create_infer_request()
        self._time = time.create_infer_request()

    def infer(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t)."""
        times = np.full(len(x_t), t, dtype=np.float32)
        handed = self._time.infer({"t": times}, share_inputs=True)
        given = {HANDED.format(number): handed[number] for number in range(len(handed))}
        given |= {"x_t": x_t, "y": y, "t": times, "dt": np.full_like(times, dt)}
        result: Float32Array = self._image.infer(given, share_inputs=True)[0].copy()  # its memory is used again
        return result


def _timely(model: Any, t: Any) -> set[str]:
    """Names of the nodes that hang on t and on nothing else that varies."""
    fixed: set[str] = set()
    timely = {_name(t)}
    for node in model.get_ordered_ops():
        sources = {_name(value.get_source_output().get_node()) for value in node.inputs()}
        kind = node.get_type_name()
        if kind in ("Constant", "ShapeOf") or (sources and sources <= fixed):
            fixed.add(_name(node))
        elif kind != "Result" and sources and sources <= fixed | timely:
            timely.add(_name(node))
    return timely


def _name(node: Any) -> str:
    """Unique in a model."""
    name: str = node.get_friendly_name()
    return name


def _shape(target: Any) -> bool:
    """Whether only the length is asked for, which is known."""
    kind: str = target.get_node().get_type_name()
    return kind == "ShapeOf"
