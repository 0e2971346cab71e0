"""`lfmri export`: a training run to a bundle that has passed its gate, or to nothing."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lfmri_export.card import INTENDED_USE, model_card
from lfmri_export.gate import Parity, check_parity, check_structure, measure_parity
from lfmri_export.golden import STEPS, Golden, make_golden
from lfmri_export.graph import OPSET, array_specs, export_step, half_weights, parameter_precision
from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import CARD, CONTRACT, GOLDEN, SEAL, STEP, open_bundle, seal_of
from lfmri_runtime.calibration import Calibration
from lfmri_runtime.contract import SCHEMA, Contract, Processing, render
from lfmri_runtime.errors import BundleRefused, TryAgainLater, UsageError
from lfmri_trainer.calibration import Progress, calibrate
from lfmri_trainer.network.presets import build_network
from lfmri_trainer.network.unet import parameter_count
from lfmri_trainer.settings import CONFIGURATION, TrainingSettings
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.weights import Learned, history, learned, load_weights, read_processing, refuse_learned, stretches
from lfmri_trainer.working import WorkingPair, working_pairs

PRECISIONS = ("float16", "float32")
#: Scans of the validation split that the uncertainty is fitted on, evenly spread over its table, which goes by name;
#: with the slices and samples of each, an export of the published network stays within minutes.
CALIBRATED_SCANS = 3


def export(
    run: Path,
    out: Path,
    *,
    name: str,
    version: str,
    licence: str,
    precision: str,
    pairs: Path | None = None,
    data: str | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Parity]:
    """Write a bundle.

    Args:
        run: folder of a training run.
        out: folder of the bundle; must not exist.
        name: of the model.
        version: of the model.
        licence: SPDX expression.
        precision: of the weights, float16 or float32.
        pairs: folder of pairs for the golden slices and the uncertainty; None takes the one that the run was trained
            with.
        data: where the training subjects come from, for the model card; None says nothing.
        progress: of fitting the uncertainty, called with (scans done, scans in all).

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
    processing = read_processing(run)
    settings.check()
    network = build_network(settings.preset).eval()
    load_weights(network, run)
    folder = pairs or Path(settings.pairs)
    golden = make_golden(network, folder, processing, settings)
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
        source_std=settings.source_std,
        time_grid="uniform",
        steps=STEPS,
        default_steps=STEPS[0],
        uncertainty=(),
        inputs=inputs,
        outputs=outputs,
        processing=processing,
        training={**({"data": data} if data else {}), **_training(run)},
        intended_use=INTENDED_USE,
        files={},
    )
    fit = partial(
        calibrate,
        pairs=_calibrated_pairs(folder, processing, learned(run)),
        processing=processing,
        source_std=settings.source_std,
        steps=STEPS,
        progress=progress,
    )
    return _write(out, contract, export_step(model, prediction=settings.prediction), golden, fit=fit)


def _calibrated_pairs(folder: Path, processing: Processing, known: Learned) -> list[WorkingPair]:
    """Validation pairs for the uncertainty, of people that the weights did not learn from; none without that split."""
    rows = sorted((row for row in read_pairs(folder) if row.split == "validation"), key=lambda row: row.pair)
    refuse_learned(known, (row.subject for row in rows), "the run")
    count = min(CALIBRATED_SCANS, len(rows))
    return working_pairs(folder, [rows[(2 * n + 1) * len(rows) // (2 * count)] for n in range(count)], processing)


def _write(
    out: Path, contract: Contract, step: bytes, golden: Golden, *, fit: Callable[[Step], tuple[Calibration, ...]]
) -> list[Parity]:
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
        opened = open_backend(open_bundle(place))
        parity = measure_parity(opened, golden.x_0, golden.y, golden.results, golden.x_1)
        check_parity(parity, precision=contract.precision)
        _seal(place, replace(contract, uncertainty=fit(opened)), parity)
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
    content = render(replace(contract, files=files, training=training)).encode()
    (place / CONTRACT).write_bytes(content)
    (place / SEAL).write_bytes(seal_of(content))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleRefused(f"{path}: {error}; expected the run that `lfmri train` made") from None


def _training(run: Path) -> dict[str, Any]:
    """A run's history; what a stretch learned from is said where it differs from the next later one's."""
    training = history(run)
    chain = list(stretches(training))
    for later, before in reversed(list(pairwise(chain))):  # the earliest first: none is compared with a gap
        for key in ("training_subjects", "validation_subjects", "presets"):
            if key in before and before[key] == later.get(key):
                del before[key]
    return training
