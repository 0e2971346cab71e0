"""The plain PyTorch sampler on a bundle's weights: what `lfmri bench` measures every back end against.

The weights are read out of step.onnx, so that a device needs no training run. Where they do not reproduce the bundle,
`lfmri bench` says that the golden check FAILED, and times them all the same; `lfmri_export.start` refuses the bundle.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from lfmri_runtime.backends import Step
from lfmri_runtime.bundle import STEP, Bundle, open_bundle
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import BundleRefused
from lfmri_trainer.flow import EulerStep
from lfmri_trainer.network.presets import PRESETS, build_network
from lfmri_trainer.network.unet import UNet

Float32Array = NDArray[np.float32]

#: The step graph holds the network under this name (`lfmri_trainer.flow.EulerStep`).
PREFIX = "network."


class EagerStep(Step):
    """One Euler step by PyTorch eager in float32, channels last.

    Args:
        bundle: verified.
        threads: of the network's arithmetic; 0 takes PyTorch's default. It holds for the whole process.

    Raises:
        BundleRefused: the bundle's network is not one of the presets, or its weights do not fit.
    """

    name = "pytorch"
    precision = "float32"

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        network = network_of(bundle).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub
        self._step = EulerStep(network, prediction=bundle.contract.prediction).eval()
        self.provider = f"PyTorch {torch.__version__}"
        self.seconds = 0.0

    @torch.inference_mode()
    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w)."""
        start = time.perf_counter()
        images = (torch.from_numpy(image).to(memory_format=torch.channels_last) for image in (x_t, y))
        result: Float32Array = self._step(*images, *(torch.full((len(x_t),), value) for value in (t, dt))).numpy()
        self.seconds += time.perf_counter() - start
        return result


def network_of(bundle: Bundle) -> UNet:
    """Build the bundle's network in float32 with the weights of its step graph.

    Raises:
        BundleRefused: as `EagerStep`.
    """
    contract = bundle.contract
    if contract.network not in PRESETS:
        raise BundleRefused(
            f"{bundle.path}: the network {contract.network!r} is no preset; expected one of {', '.join(PRESETS)}"
        )
    network = build_network(contract.network)
    try:
        network.load_state_dict(_state(network, onnx.load_from_string(bundle.read(STEP)).graph))
    except (KeyError, ValueError, RuntimeError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleRefused(
            f"{bundle.path / STEP} does not hold the weights of {contract.network} ({reason}); export it again"
        ) from None
    return network


def _state(network: UNet, graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """The parameters: most keep their name; the tracer folds the rest into constants, found by the order of use.

    Folded are the affine part of group norms (Mul and Add after InstanceNormalization) and transposed weights of
    linear layers without a Gemm (MatMul). A bias that is not there was one of zeros.
    """
    values = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    state = {name.removeprefix(PREFIX): array for name, array in values.items() if name.startswith(PREFIX)}
    norms, products = _affine_parts(graph, values), _products(graph, values)
    for name, module in _in_order_of_use(network):
        if isinstance(module, nn.GroupNorm):
            scale, shift = next(norms)
            state |= {f"{name}.weight": scale.ravel(), f"{name}.bias": shift.ravel()}
        elif isinstance(module, nn.Linear) and f"{name}.weight" not in state:
            state[f"{name}.weight"] = next(products).T
    expected = network.state_dict()
    state = {name: np.zeros(value.shape) for name, value in expected.items() if name.endswith(".bias")} | state
    return {name: torch.from_numpy(state[name].astype(np.float32)).reshape(expected[name].shape) for name in expected}


def _in_order_of_use(network: UNet) -> list[tuple[str, nn.Module]]:
    """Modules in the order in which one forward pass calls them, which is the order of the graph's nodes."""
    called: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(lambda module, *_, name=name: called.append((name, module)))
        for name, module in network.named_modules()
    ]
    side = network.configuration.multiple
    with torch.no_grad():
        network(torch.zeros(1, 1, side, side), torch.zeros(1, 1, side, side), torch.zeros(1))
    for hook in hooks:
        hook.remove()
    return called


def _affine_parts(
    graph: onnx.GraphProto, values: dict[str, NDArray[np.generic]]
) -> Iterator[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    """Scale and shift that follow each InstanceNormalization."""
    after = iter(graph.node)
    for node in after:
        if node.op_type == "InstanceNormalization":
            scale = next(n for n in after if n.op_type == "Mul")
            shift = next(n for n in after if n.op_type == "Add")
            yield values[scale.input[1]], values[shift.input[1]]


def _products(graph: onnx.GraphProto, values: dict[str, NDArray[np.generic]]) -> Iterator[NDArray[np.generic]]:
    """Constant right factors of the matrix products."""
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            yield values[node.input[1]]


def open_enhancer(path: Path, *, threads: int = 0) -> Enhancer:
    """The runtime's core around the PyTorch sampler; `lfmri bench` opens it here and in a fresh process."""
    bundle = open_bundle(path)
    return Enhancer(bundle, step=EagerStep(bundle, threads=threads))
