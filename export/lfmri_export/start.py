"""From a bundle back to a run that `lfmri train --initial` takes: `python -m lfmri_export.start RUN [--bundle DIR]`.

The exporter renames and transposes weights on their way into the graph. So a network with random weights is exported
the same way: where each of its weights is found again, the bundle's graph has the one that is wanted.
"""

from pathlib import Path

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from lfmri_export.graph import export_step, half_weights
from lfmri_runtime.bundle import STEP, open_bundle
from lfmri_runtime.contract import Contract, render
from lfmri_runtime.errors import BundleRefused, UsageError
from lfmri_runtime.files import atomic_write, write_json, write_text
from lfmri_trainer.network.presets import PRESETS, build_network
from lfmri_trainer.settings import TrainingSettings
from lfmri_trainer.weights import PROCESSING, SUMMARY, WEIGHTS

#: What the contract's training section holds beside a run's summary.
BESIDE = ("data", "settings", "parity")


def start_from_bundle(bundle: Path | None, run: Path) -> None:
    """Write a run folder with the bundle's weights, in the precision that the bundle keeps.

    Args:
        bundle: folder; None takes the built-in one.
        run: folder of the run; must not exist.

    Raises:
        UsageError: `run` exists.
        BundleRefused: a bundle that cannot be used, of an unknown preset, or whose graph another exporter wrote.
    """
    if run.exists():
        raise UsageError(f"{run} exists; expected a new folder: remove it or choose another")
    opened = open_bundle(bundle)
    contract = opened.contract
    if contract.network not in PRESETS:
        raise BundleRefused(f"the bundle's network is {contract.network!r}; expected one of {', '.join(PRESETS)}")
    weights = weights_of(onnx.load(opened.path / STEP), contract)
    settings = TrainingSettings.of({**contract.training["settings"], "pairs": "", "initial": ""}, where="settings")
    run.mkdir(parents=True)
    settings.save(run)
    write_text(run / PROCESSING, render(contract.processing))
    write_json(run / SUMMARY, {key: value for key, value in contract.training.items() if key not in BESIDE})
    with atomic_write(run / WEIGHTS) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **weights)


def weights_of(graph: onnx.ModelProto, contract: Contract) -> dict[str, NDArray[np.float32]]:
    """The network's weights by their PyTorch names, from a step graph.

    Raises:
        BundleRefused: the graph is not what this exporter makes of the contract's network.
    """
    template = build_network(contract.network).eval()
    with torch.no_grad():
        for parameter in template.parameters():
            parameter.uniform_(0.5, 1)
    if contract.precision == "float16":
        half_weights(template)
    own = onnx.load_from_string(export_step(template, prediction=contract.prediction))
    drawn, kept = ({one.name: numpy_helper.to_array(one) for one in g.graph.initializer} for g in (own, graph))
    alike = all(name in drawn and drawn[name].shape == array.shape for name, array in kept.items())
    if not alike or _operators(own) != _operators(graph):
        raise BundleRefused(
            f"the bundle's graph was made by another exporter ({graph.producer_name} {graph.producer_version}, here "
            f"{own.producer_name} {own.producer_version}); expected the same: install the version that it was made with"
        )
    return {
        name: _found(value.numpy(), drawn, kept).astype(np.float32) for name, value in template.state_dict().items()
    }


def _operators(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """What is computed in which order; not from what, since the exporter leaves out a bias that is all zero."""
    return [(node.op_type, *node.output) for node in model.graph.node]


def _found(
    value: NDArray[np.generic], drawn: dict[str, NDArray[np.generic]], kept: dict[str, NDArray[np.generic]]
) -> NDArray[np.generic]:
    """The bundle's values in the place where the template's are found, in the template's shape; zero if left out."""
    found: NDArray[np.generic]
    for name, array in drawn.items():
        if array.size == value.size and np.array_equal(array.ravel(), value.ravel()):
            found = kept.get(name, np.zeros_like(array)).reshape(value.shape)
            return found
        if value.ndim == 2 and np.array_equal(array, value.T):
            found = kept[name].T
            return found
    raise BundleRefused(f"a weight of shape {value.shape} is not in the graph as it was; expected it unchanged")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle; the built-in one by default.")
def main(run: Path, bundle: Path | None) -> None:
    """Write a run folder with a bundle's weights, for `lfmri train --initial RUN`."""
    start_from_bundle(bundle, run)


if __name__ == "__main__":
    main()
