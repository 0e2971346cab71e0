import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from lfmri_runtime.calibration import Calibration
from lfmri_runtime.contract import MAX_STEPS, SCHEMA, ArraySpec, Contract, Processing, decode, parse_contract, render
from lfmri_runtime.errors import BundleRefused
from lfmri_runtime.intensity import HighFieldStandard, LowFieldScale

CONTRACT = Contract(
    schema=SCHEMA,
    name="iqt-cfm-t1w",
    version="1.0",
    licence="Apache-2.0",
    network="paper",
    parameters=13_000_000,
    prediction="x_1",
    precision="float16",
    source_std=1.0,
    time_grid="uniform",
    steps=(1, 3, 10),
    default_steps=3,
    uncertainty=(Calibration(steps=3, samples=6, scale=1.75, subjects=("c",), scans=4, voxels=5_000),),
    inputs=(
        ArraySpec(name="x_t", dtype="float32", shape=("batch", "1", "8*h", "8*w"), range=None),
        ArraySpec(name="y", dtype="float32", shape=("batch", "1", "8*h", "8*w"), range=(0.0, 2.5)),
    ),
    outputs=(ArraySpec(name="x_next", dtype="float32", shape=("batch", "1", "8*h", "8*w"), range=None),),
    processing=Processing(
        voxel_size=1.0,
        multiple=8,
        planes="containing the thick axis",
        low_field=LowFieldScale(target=0.62),
        high_field=HighFieldStandard(),
    ),
    training={"pairs": 12, "subjects": ["a", "b"], "loss": {"train": 0.5, "best": None}, "ema": True},
    intended_use="Research; not a medical device. Größe",
    files={"step.onnx": "0" * 64, "golden.npz": "f" * 64},
)


def document() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(render(CONTRACT))
    return result


def refusal(change: Callable[[dict[str, Any]], object]) -> str:
    """Refuse a changed contract and give the message: one line that names the file and says what to do."""
    changed = document()
    change(changed)
    with pytest.raises(BundleRefused) as caught:
        parse_contract(json.dumps(changed))
    message = str(caught.value)
    assert message.startswith("contract.json")
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_a_contract_comes_back_as_it_was_written() -> None:
    text = render(CONTRACT)
    assert text.endswith("}\n")
    found = parse_contract(text)
    assert found == CONTRACT
    assert render(found) == text
    assert parse_contract(render(replace(CONTRACT, prediction="velocity"))).prediction == "velocity"


def test_a_part_comes_back_alone() -> None:
    assert decode(Processing, json.loads(render(CONTRACT.processing)), "processing") == CONTRACT.processing


def test_a_whole_number_is_taken_for_a_float() -> None:
    changed = document()
    changed["processing"]["voxel_size"] = 1
    found = parse_contract(json.dumps(changed)).processing.voxel_size
    assert (found, type(found)) == (1.0, float)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"schema": 1,}', "\ufeff{}", "1" * 5000, '{"schema": 1} {}'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BundleRefused, match="not JSON"):
        parse_contract(text)


@pytest.mark.parametrize("opening", ["[", '{"schema":'])
def test_deep_nesting_is_refused(opening: str) -> None:
    with pytest.raises(BundleRefused, match="not JSON"):
        parse_contract(opening * 100_000)


def test_every_depth_that_json_takes_is_decoded_or_refused() -> None:
    for depth in (50, 500, 900, 950, 990, 2000):
        nested = "[" * depth + "]" * depth
        for key in ("name", "schema", "steps", "training", "processing"):
            changed = {**document(), key: "NESTED"}
            with pytest.raises(BundleRefused):
                parse_contract(json.dumps(changed).replace('"NESTED"', nested))


@pytest.mark.parametrize("text", ["null", "3", '"text"', "[]", "{}"])
def test_json_that_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(BundleRefused, match="schema None"):
        parse_contract(text)


@pytest.mark.parametrize(
    ("schema", "hint"),
    [
        (SCHEMA + 1, "update lfmri"),
        (10**300, "update lfmri"),
        (SCHEMA - 1, "again"),
        (str(SCHEMA), "again"),
        (None, "again"),
        ("x" * 9999, "again"),
    ],
)
def test_another_schema_is_refused(schema: object, hint: str) -> None:
    message = refusal(lambda d: d.update(schema=schema))
    assert f"reads schema {SCHEMA}" in message
    assert hint in message


@pytest.mark.parametrize("schema", [float(SCHEMA)])
def test_a_schema_that_only_equals_ours_is_refused(schema: object) -> None:
    assert "contract.json.schema is" in refusal(lambda d: d.update(schema=schema))


@pytest.mark.parametrize(
    ("place", "where"),
    [
        (lambda d: d, "contract.json"),
        (lambda d: d["processing"], "contract.json.processing"),
        (lambda d: d["processing"]["low_field"], "contract.json.processing.low_field"),
        (lambda d: d["inputs"][1], "contract.json.inputs[1]"),
        (lambda d: d["uncertainty"][0], "contract.json.uncertainty[0]"),
    ],
)
def test_an_unknown_key_is_refused(place: Callable[[dict[str, Any]], dict[str, Any]], where: str) -> None:
    assert f"{where}: the key 'colour' is not known" in refusal(lambda d: place(d).update(colour="red"))


@pytest.mark.parametrize("key", [field.name for field in fields(Contract) if field.name != "schema"])
def test_a_missing_key_is_refused(key: str) -> None:
    assert f"contract.json: the key '{key}' is missing" in refusal(lambda d: d.pop(key))


@pytest.mark.parametrize("key", [field.name for field in fields(Processing)])
def test_a_missing_nested_key_is_refused(key: str) -> None:
    assert f"contract.json.processing: the key '{key}' is missing" in refusal(lambda d: d["processing"].pop(key))


def test_a_default_does_not_excuse_a_missing_key() -> None:
    assert "'limit' is missing" in refusal(lambda d: d["processing"]["low_field"].pop("limit"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("name", None),
        ("parameters", 1.5),
        ("parameters", True),
        ("parameters", "13"),
        ("steps", 3),
        ("steps", [1, "3"]),
        ("steps", {"1": 1}),
        ("inputs", [3]),
        ("inputs", {}),
        ("processing", []),
        ("processing", None),
        ("training", []),
        ("files", {"step.onnx": 3}),
        ("files", ["step.onnx"]),
        ("intended_use", ["x"]),
    ],
)
def test_a_wrong_type_is_refused(key: str, value: object) -> None:
    message = refusal(lambda d: d.update({key: value}))
    assert message.startswith(f"contract.json.{key}")
    assert "expected" in message


@pytest.mark.parametrize("value", ["1", None, True, [], 10**400, float("nan"), float("inf"), -float("inf")])
def test_a_number_must_be_finite(value: object) -> None:
    assert "contract.json.processing.voxel_size is" in refusal(lambda d: d["processing"].update(voxel_size=value))


@pytest.mark.parametrize("value", [[0.0], [0.0, 1.0, 2.0], [0.0, "1"], 3.0])
def test_a_range_holds_two_numbers(value: object) -> None:
    assert "contract.json.inputs[1].range" in refusal(lambda d: d["inputs"][1].update(range=value))


@pytest.mark.parametrize("prediction", ["", "x_0", "X_1", "noise" * 500])
def test_an_unknown_prediction_is_refused(prediction: str) -> None:
    assert "expected one of x_1, velocity" in refusal(lambda d: d.update(prediction=prediction))


@pytest.mark.parametrize("std", [0.0, -1.0, 11.0])
def test_a_deviation_of_the_noise_is_above_zero_and_bounded(std: float) -> None:
    assert f"source_std is {std:g}; expected above 0 and at most 10" in refusal(lambda d: d.update(source_std=std))


@pytest.mark.parametrize("steps", [[], [0], [1, 3, -1], [1, 3, 3], [3, MAX_STEPS + 1], [3, 10**300], [3] * 9999])
def test_numbers_of_steps_that_cannot_be_checked_are_refused(steps: list[int]) -> None:
    """With none of them nothing would be compared, and every golden check would pass."""
    message = refusal(lambda d: d.update(steps=steps))
    assert "contract.json: steps is (" in message
    assert f"expected one or more different numbers from 1 to {MAX_STEPS}" in message


def test_every_number_of_steps_that_can_be_asked_may_be_verified() -> None:
    steps = (1, MAX_STEPS)
    assert parse_contract(render(replace(CONTRACT, steps=steps, default_steps=1))).steps == steps


@pytest.mark.parametrize("default", [0, 2, 10**300])
def test_a_default_that_was_not_verified_is_refused(default: int) -> None:
    message = refusal(lambda d: d.update(default_steps=default))
    assert "contract.json: default_steps is " in message
    assert "expected one of the verified (1, 3, 10)" in message


@pytest.mark.parametrize("scale", [0, -1.5])
def test_a_scale_of_the_uncertainty_is_above_zero(scale: float) -> None:
    message = refusal(lambda d: d["uncertainty"][0].update(scale=scale))
    assert f"uncertainty[0].scale is {scale:g}; expected above 0" in message


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert "'xxx" in refusal(lambda d: d.update(parameters="x" * 100_000))
    assert "..." in refusal(lambda d: d.update({"k" * 100_000: 1}))
