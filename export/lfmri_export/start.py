"""From a bundle back to a run that `lfmri train --initial` takes: `python -m lfmri_export.start RUN [--bundle DIR]`.

The exporter renames and transposes weights on their way into the graph; `lfmri_export.eager` finds them there. They are
the right ones, in the right places, where PyTorch gives the bundle's golden results with them.
"""

from pathlib import Path

import click
import numpy as np

from lfmri_export.eager import EagerStep, network_of
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.contract import render
from lfmri_runtime.errors import BundleRefused, UsageError
from lfmri_runtime.files import atomic_write, write_json, write_text
from lfmri_runtime.golden import failures, measure_parity, read_golden
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
        BundleRefused: a bundle that cannot be used, of an unknown preset, or whose weights are not found in its graph.
    """
    if run.exists():
        raise UsageError(f"{run} exists; expected a new folder: remove it or choose another")
    opened = open_bundle(bundle)
    contract = opened.contract
    network = network_of(opened)
    failed = failures(measure_parity(EagerStep(opened), read_golden(opened)))
    if failed:
        raise BundleRefused(
            f"{opened.path}: PyTorch with the weights found in its graph is not what it was where the bundle was made "
            f"({failed[0]}); expected the golden results: export it again"
        )
    settings = TrainingSettings.of({**contract.training["settings"], "pairs": "", "initial": ""}, where="settings")
    run.mkdir(parents=True)
    settings.save(run)
    write_text(run / PROCESSING, render(contract.processing))
    write_json(run / SUMMARY, {key: value for key, value in contract.training.items() if key not in BESIDE})
    with atomic_write(run / WEIGHTS) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: value.numpy() for name, value in network.state_dict().items()})


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle; the built-in one by default.")
def main(run: Path, bundle: Path | None) -> None:
    """Write a run folder with a bundle's weights, for `lfmri train --initial RUN`."""
    start_from_bundle(bundle, run)


if __name__ == "__main__":
    main()
