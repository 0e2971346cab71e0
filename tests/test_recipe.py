"""A training set from one file."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lfmri.cli import run
from lfmri_runtime.errors import InputRefused
from lfmri_trainer.recipe import read_recipe
from lfmri_trainer.simulation.pairs import low_path, read_pairs

from .onion import onion
from .phantom import save_two

RECIPE: dict[str, Any] = {
    "synthesise": [{"labels": "labels", "name": "made"}],
    "vary": [{"subjects": "adults", "name": "varied", "seed": 2}],
    "simulate": [
        {"subjects": "made", "preset": "siqt-k4", "thick_axis": "random", "validation": 0},
        {"subjects": "adults", "preset": "siqt-k4", "validation_subjects": ["anna"]},
        {"subjects": "varied", "preset": "siqt-k4-noisy", "validation_subjects": ["anna"]},
        {"subjects": "adults", "preset": "ultra-low-field", "draws": 2, "validation_subjects": ["anna"]},
    ],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a recipe and what it reads."""
    save_two(tmp_path / "adults")
    (tmp_path / "labels").mkdir()
    nib.Nifti1Image(onion(), np.eye(4)).to_filename(tmp_path / "labels" / "shells.nii.gz")
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    return tmp_path


@pytest.mark.usefixtures("inline")
def test_one_command_makes_the_set_and_again_makes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", str(place / "recipe.json"), "--out", str(place / "set")]
    assert run(arguments) == 0
    assert capsys.readouterr().out == f"9 pairs of 5 subjects in {place / 'set' / 'pairs'}\n"
    pairs = read_pairs(place / "set" / "pairs")
    assert all(low_path(place / "set" / "pairs", pair).is_file() for pair in pairs)
    assert {pair.subject: pair.split for pair in pairs} == {
        "anna": "validation",
        "anna_copy-1": "validation",
        "ben": "train",
        "ben_copy-1": "train",
        "shells": "train",
    }
    assert sorted(pair.preset for pair in pairs) == ["siqt-k4"] * 3 + ["siqt-k4-noisy"] * 2 + ["ultra-low-field"] * 4
    before = {path: path.stat().st_mtime_ns for path in (place / "set").rglob("*.nii.gz")}
    assert run(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "set").rglob("*.nii.gz")} == before
    (place / "recipe.json").write_text(json.dumps(RECIPE | {"vary": [], "simulate": RECIPE["simulate"][:2]}))
    assert run(arguments) == 3
    assert "was made by another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"simulate": []}, "nothing to simulate"),
        ({"simulate": [{"subjects": "adults", "preset": "siqt-k5"}]}, "unknown preset 'siqt-k5'"),
        ({"simulate": [{"subjects": "adults", "preset": "siqt-k4", "thick_axis": "x"}]}, "unknown thick_axis 'x'"),
        ({"simulate": [{"subjects": "adults", "preset": "siqt-k4", "draws": 0}]}, "draws 0"),
        ({"simulate": [{"subjects": "adults", "preset": "siqt-k4", "draw": 1}]}, "'draw' is not known"),
        ({"simulate": [{"subjects": "adults"}]}, "'preset' is missing"),
        ({"simulate": [{"subjects": "children", "preset": "siqt-k4"}]}, "no folder children"),
        ({"simulate": {"subjects": "adults"}}, "where a list is expected"),
        ({"synthesise": [{"labels": "maps", "name": "made"}]}, "no folder maps"),
        ({"vary": [{"subjects": "adults", "name": "made"}]}, "'made' is taken"),
        ({"vary": [{"subjects": "adults", "name": "../up"}]}, "'../up' is taken, or no plain one"),
        ({"vary": [{"subjects": "adults", "name": "pairs"}]}, "'pairs' is taken"),
        ({"vary": [{"subjects": "adults", "name": "varied", "copies": 0}]}, "fewer than one copy"),
        ({"elastic": True}, "'elastic' is not known"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(place: Path, change: dict[str, Any], match: str) -> None:
    (place / "recipe.json").write_text(json.dumps(RECIPE | change))
    with pytest.raises(InputRefused, match=rf"recipe\.json: .*{match}.*mend it"):
        read_recipe(place / "recipe.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '"' + "x" * (1 << 20) + '"'])
def test_what_is_no_recipe_is_refused_in_one_line(place: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "recipe.json").write_text(text)
    assert run(["prepare", str(place / "recipe.json"), "--out", str(place / "set")]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 400
    assert not (place / "set").exists()


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    assert run(["prepare", str(tmp_path / "none.json"), "--out", str(tmp_path / "set")]) == 3
