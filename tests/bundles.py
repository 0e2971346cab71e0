"""Bundles with step graphs that are built by hand, so that what enhancing must give is known in advance."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lfmri_runtime.contract import SCHEMA, ArraySpec, Contract, Processing, render
from lfmri_runtime.intensity import HighFieldStandard, LowFieldScale

Float32Array = NDArray[np.float32]
MakeBundle = Callable[..., Path]

IMAGE = ("batch", "1", "8*h", "8*w")
#: How much of x_t is in the x_1 that the noisy graph predicts.
SHARE = 0.1
#: What the network predicts: y itself (enhancing is then interpolation), or y and a share of x_t.
PREDICTIONS = {"y": 0.0, "noisy": SHARE}


def arrays() -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
    inputs = (
        ArraySpec(name="x_t", dtype="float32", shape=IMAGE, range=None),
        ArraySpec(name="y", dtype="float32", shape=IMAGE, range=(0.0, 2.5)),
        ArraySpec(name="t", dtype="float32", shape=("batch",), range=(0.0, 1.0)),
        ArraySpec(name="dt", dtype="float32", shape=("batch",), range=(0.0, 1.0)),
    )
    return inputs, (ArraySpec(name="x_next", dtype="float32", shape=IMAGE, range=None),)


def step_graph(share: float) -> onnx.ModelProto:
    """x_next = x_t + dt * (x_1_hat - x_t) / (1 - t), with x_1_hat = y + share * x_t."""
    constants = {"one": np.float32(1), "share": np.float32(share), "axes": np.array([1, 2, 3])}
    nodes = [
        helper.make_node("Mul", ["share", "x_t"], ["part"]),
        helper.make_node("Add", ["y", "part"], ["x_1"]),
        helper.make_node("Sub", ["x_1", "x_t"], ["way"]),
        helper.make_node("Sub", ["one", "t"], ["remainder"]),
        helper.make_node("Div", ["dt", "remainder"], ["fraction"]),
        helper.make_node("Unsqueeze", ["fraction", "axes"], ["factor"]),
        helper.make_node("Mul", ["factor", "way"], ["move"]),
        helper.make_node("Add", ["x_t", "move"], ["x_next"]),
    ]
    values = []
    for specs in arrays():
        shapes = [[int(axis) if axis.isdigit() else axis for axis in spec.shape] for spec in specs]
        values.append(
            [
                helper.make_tensor_value_info(s.name, TensorProto.FLOAT, shape)
                for s, shape in zip(specs, shapes, strict=True)
            ]
        )
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "step", *values, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def numpy_euler(x_0: Float32Array, y: Float32Array, *, share: float, steps: int) -> Float32Array:
    """What a graph's loop must give, written again in float64."""
    x_t = x_0.astype(np.float64)
    for n in range(steps):
        x_t = x_t + (y + share * x_t - x_t) / (steps - n)
    return x_t.astype(np.float32)


def contract(**changes: Any) -> Contract:
    inputs, outputs = arrays()
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "name": "by-hand",
        "version": "0.0.1",
        "licence": "Apache-2.0",
        "network": "none",
        "parameters": 0,
        "prediction": "x_1",
        "precision": "float32",
        "source_std": 0.5,
        "time_grid": "uniform",
        "steps": (1, 2, 5),
        "default_steps": 1,
        "uncertainty": (),
        "inputs": inputs,
        "outputs": outputs,
        "processing": Processing(
            voxel_size=1.0,
            multiple=8,
            planes="containing the thick axis",
            low_field=LowFieldScale(target=0.6),
            high_field=HighFieldStandard(),
        ),
        "training": {"training_subjects": ["nobody"]},
        "intended_use": "Tests.",
        "files": {},
    }
    return Contract(**{**values, **changes})


def write_bundle(folder: Path, predicts: str = "y", *, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """Write a whole bundle; `changes` are fields of its contract."""
    folder.mkdir(parents=True)
    share = PREDICTIONS[predicts]
    rng = np.random.default_rng(20)
    x_0, y = rng.standard_normal((2, 1, 64, 64), np.float32), rng.random((2, 1, 64, 64), np.float32)
    results = {f"result_{steps}": numpy_euler(x_0, y, share=share, steps=steps) for steps in (1, 2, 5)}
    (folder / "step.onnx").write_bytes((step_graph(share) if model is None else model).SerializeToString())
    np.savez_compressed(folder / "golden.npz", x_0=x_0, y=y, x_1=y, **results)
    (folder / "MODEL_CARD.md").write_text("# by-hand 0.0.1\n\nTests.\n")
    return seal(folder, **changes)


def seal(folder: Path, **changes: Any) -> Path:
    """Write the contract last, with the hash of every file in the folder."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    for name in ("contract.json", "contract.sha256"):
        files.pop(name, None)
    (folder / "contract.json").write_text(render(contract(**{"files": files, **changes})))
    return seal_contract(folder)


def seal_contract(folder: Path) -> Path:
    """Write the hash of the contract beside it, as sha256sum would."""
    digest = hashlib.sha256((folder / "contract.json").read_bytes()).hexdigest()
    (folder / "contract.sha256").write_text(f"{digest}  contract.json\n")
    return folder


def change_contract(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change contract.json as plain values; returns the folder."""
    path = folder / "contract.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return seal_contract(folder)
