"""`lfmri export`: a training run to a bundle that has passed its gate, or to nothing."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from lfmri_export.card import INTENDED_USE, model_card
from lfmri_export.gate import Parity, check_parity, check_structure, measure_parity
from lfmri_export.golden import STEPS, Golden, make_golden
from lfmri_export.graph import OPSET, array_specs, export_step, half_weights, parameter_precision
from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import CARD, CONTRACT, GOLDEN, STEP, open_bundle
from lfmri_runtime.contract import SCHEMA, Contract, Processing, decode, render
from lfmri_runtime.errors import BundleRefused, TryAgainLater, UsageError
from lfmri_trainer.network.presets import PRESETS, build_network
from lfmri_trainer.network.unet import UNet, parameter_count
from lfmri_trainer.settings import CONFIGURATION, TrainingSettings
from lfmri_trainer.train import PROCESSING, SUMMARY, WEIGHTS

PRECISIONS = ("float16", "float32")


def export(
    run: Path, out: Path, *, name: str, version: str, licence: str, precision: str, pairs: Path | None = None
) -> list[Parity]:
    """Write a bundle.

    Args:
        run: folder of a training run.
        out: folder of the bundle; must not exist.
        name: of the model.
        version: of the model.
        licence: SPDX expression.
        precision: of the weights, float16 or float32.
        pairs: folder of pairs for the golden slices; None takes the one that the run was trained with.

    Returns:
        the parity that was measured.

    Raises:
        UsageError: `out` exists, or an unknown precision.
        BundleRefused: the run is incomplete, or the graph does not pass the gate; nothing is left behind.
        TryAgainLater: `out` cannot be written.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if out.exists():
        raise UsageError(f"{out} exists; expected a new folder: remove it or choose another --out")
    settings = TrainingSettings.load(run / CONFIGURATION)
    processing: Processing = decode(Processing, _json(run / PROCESSING), PROCESSING)
    network = load_network(run, settings)
    golden = make_golden(network, pairs or Path(settings.pairs), processing, prediction=settings.prediction)
    model = half_weights(network) if precision == "float16" else network
    inputs, outputs = array_specs(processing.multiple, y_limit=processing.low_field.limit)
    contract = Contract(
        schema=SCHEMA,
        name=name,
        version=version,
        licence=licence,
        network=settings.preset,
        parameters=parameter_count(network),
        prediction=settings.prediction,
        precision=parameter_precision(model),
        source="standard normal",
        time_grid="uniform",
        steps=STEPS,
        default_steps=STEPS[0],
        inputs=inputs,
        outputs=outputs,
        processing=processing,
        training={**_json(run / SUMMARY), "settings": _published(settings)},
        intended_use=INTENDED_USE,
        files={},
    )
    return _write(out, contract, export_step(model, prediction=settings.prediction), golden)


def load_network(run: Path, settings: TrainingSettings) -> UNet:
    """Build a run's network with its averaged weights, in evaluation mode.

    Raises:
        BundleRefused: the weights are missing or are not this network's.
    """
    network = build_network(settings.preset) if settings.preset in PRESETS else None
    try:
        with np.load(run / WEIGHTS, allow_pickle=False) as arrays:
            weights = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        if network is None:
            raise KeyError(settings.preset)
        network.load_state_dict(weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BundleRefused(f"{run / WEIGHTS}: {reason}; expected the run that `lfmri train` made") from None
    return network.eval()


def _write(out: Path, contract: Contract, step: bytes, golden: Golden) -> list[Parity]:
    """Assemble the bundle in a folder beside `out`, open it as the runtime would, and move it there if it passes."""
    check_structure(onnx.load_from_string(step), contract.inputs, contract.outputs, opset=OPSET)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise TryAgainLater(f"{out}: {error.strerror}; expected a folder that can be written") from None
    try:
        (place / STEP).write_bytes(step)
        with (place / GOLDEN).open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **golden.arrays())
        _seal(place, contract, [])
        parity = measure_parity(open_backend(open_bundle(place)), golden.x_0, golden.y, golden.results, golden.x_1)
        check_parity(parity, precision=contract.precision)
        _seal(place, contract, parity)
        open_bundle(place)
        place.chmod(0o755)
        place.rename(out)
    except OSError as error:
        raise TryAgainLater(f"{out}: {error.strerror}; free some space and export again") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return parity


def _seal(place: Path, contract: Contract, parity: list[Parity]) -> None:
    """Write the card and, last, the contract with every file's hash."""
    training = {**contract.training, "parity": [asdict(row) for row in parity]}
    (place / CARD).write_text(model_card(contract, parity))
    files = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in (STEP, GOLDEN, CARD)}
    (place / CONTRACT).write_text(render(replace(contract, files=files, training=training)))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleRefused(f"{path}: {error}; expected the run that `lfmri train` made") from None


def _published(settings: TrainingSettings) -> dict[str, Any]:
    """The settings without where the pairs lay on the training machine."""
    return {key: value for key, value in asdict(settings).items() if key != "pairs"}
