"""One change at a time: what the ablation's script trains."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfmri_runtime.errors import InputRefused
from lfmri_trainer.simulation.pairs import read_pairs, write_pairs
from tests.training_fixtures import write_tiny_pairs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("ablation")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two training pairs, of different presets, and two others."""
    folder = write_tiny_pairs(tmp_path / "pairs")
    write_pairs(folder, [replace(r, preset="siqt-k4") if r.subject == "s1" else r for r in read_pairs(folder)])
    return folder


def test_each_variant_changes_one_thing(
    ablation: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("usual", "half of the steps regression, then flow", "no noisier draws")
    out = tmp_path / "out"
    options = [
        "--steps",
        "2",
        "--batch",
        "1",
        "--crop",
        "16",
        "--slices",
        "1",
        "--precision",
        "32-true",
        "--only",
        *chosen,
    ]
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--pairs", str(pairs), "--out", str(out), *options])
    ablation.main()
    table = capsys.readouterr().out
    usual, warmed, quiet = (
        {name: json.loads((out / run / f"{name}.json").read_text()) for name in ("config", "summary")}
        for run in ("usual", "half-of-the-steps-regression,-then-flow", "no-noisier-draws")
    )
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {name}" for name in chosen]
    assert usual["summary"]["training_pairs"] == 2
    last = usual["summary"]["last_metrics"]["validation/psnr"]
    line = next(line for line in table.splitlines() if line.startswith("| usual"))
    assert line.split(" | ")[1] == f"{last:.2f}"
    assert line.split(" | ")[3] == f"{last:.2f} |", "all that is held out is of one preset"

    assert (warmed["summary"]["steps"], warmed["summary"]["steps_in_all"]) == (1, 2)
    first = json.loads((Path(warmed["config"]["initial"]) / "config.json").read_text())
    assert (first["max_steps"], first["time_zero"]) == (1, ablation.REGRESSION["time_zero"])
    assert warmed["config"]["time_zero"] == usual["config"]["time_zero"]

    assert quiet["summary"]["training_pairs"] == 1
    assert quiet["summary"]["validation_subjects"] == ["s3"]
    changed = {name for name, value in quiet["config"].items() if value != usual["config"][name]}
    assert changed == {"pairs"}

    before = (out / "usual" / "weights.npz").stat().st_mtime_ns
    ablation.main()
    assert capsys.readouterr().out == table, "what is there is taken over"
    assert (out / "usual" / "weights.npz").stat().st_mtime_ns == before


def test_a_change_of_presets_that_changes_nothing_is_left_out(
    ablation: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(pairs, [replace(row, preset="siqt-k4") for row in read_pairs(pairs)])
    monkeypatch.setattr(ablation, "CHANGES", {"no noisier draws": ablation.CHANGES["no noisier draws"]})
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--pairs", str(pairs), "--out", str(tmp_path / "out")])
    ablation.main()
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_every_run_goes_on_from_the_weights_that_are_given(
    ablation: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {n: ablation.CHANGES[n] for n in ("usual", "three times the rate", "velocity", "the other network")}
    monkeypatch.setattr(ablation, "CHANGES", {"usual": {}})
    out, options = tmp_path / "out", ["--batch", "1", "--crop", "16", "--slices", "1", "--precision", "32-true"]
    begin = ["ablation.py", "--pairs", str(pairs), "--steps", "1", *options, "--out"]
    monkeypatch.setattr(sys, "argv", [*begin, str(tmp_path / "fresh")])
    ablation.main()
    capsys.readouterr()

    monkeypatch.setattr(ablation, "CHANGES", changes)
    initial = tmp_path / "fresh" / "usual"
    monkeypatch.setattr(sys, "argv", [*begin, str(out), "--initial", str(initial), "--learning-rate", "1e-4"])
    ablation.main()
    usual, faster = (
        {name: json.loads((out / run / f"{name}.json").read_text()) for name in ("config", "summary")}
        for run in ("usual", "three-times-the-rate")
    )
    assert len(capsys.readouterr().out.splitlines()) == 4, "other networks and readings do not fit these weights"
    assert usual["config"]["initial"] == str(initial)
    assert usual["summary"]["steps_in_all"] == 2
    assert usual["config"]["learning_rate"] == pytest.approx(1e-4)
    assert faster["config"]["learning_rate"] == pytest.approx(3e-4)


def test_pairs_without_validation_are_refused(
    ablation: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(pairs, [row for row in read_pairs(pairs) if row.split == "train"])
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--pairs", str(pairs), "--out", str(tmp_path / "out")])
    with pytest.raises(InputRefused, match="no pair has the split validation; expected some"):
        ablation.main()
    assert not (tmp_path / "out").exists()
