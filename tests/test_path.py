"""What a model makes of x_t along the path: the script's table for a bundle whose answer is known."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.working import working_pairs
from tests.bundles import MakeBundle, contract
from tests.training_fixtures import write_tiny_pairs

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "path.py"


def test_a_model_that_only_sees_the_scan_is_as_wrong_at_every_time(make_bundle: MakeBundle, tmp_path: Path) -> None:
    pairs = write_tiny_pairs(tmp_path / "pairs")
    options = ["--pairs", str(pairs), "--bundle", str(make_bundle("y")), "--slices", "40"]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=True)
    table = np.array([line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]], dtype=float)
    t, found, alone, mixed = table.T
    (pair,) = working_pairs(pairs, [r for r in read_pairs(pairs) if r.split == "validation"], contract().processing)
    y, x_1 = (np.asarray(volume, np.float32) for volume in (pair.condition, pair.target))
    difference = (y - x_1[tuple(map(slice, y.shape))])[x_1[tuple(map(slice, y.shape))] > 0.05]
    assert found[0] == pytest.approx(np.sqrt(np.square(difference).mean()), rel=0.1), "some slices of the volume"
    assert np.ptp(found) < 2e-4
    np.testing.assert_allclose(alone[1:], contract().source_std * (1 - t[1:]) / t[1:], atol=1e-4)
    expected = (found[0] ** -2 + alone[1:] ** -2) ** -0.5
    np.testing.assert_allclose(mixed[1:], expected, atol=1e-4)
    assert mixed[0] == found[0]


def test_pairs_without_validation_are_refused(tmp_path: Path) -> None:
    pairs = write_tiny_pairs(tmp_path / "pairs", (("s1", "train", "S"),))
    done = subprocess.run([sys.executable, str(SCRIPT), "--pairs", str(pairs)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"path.py: {pairs}: no pair has the split validation; expected some: hold subjects out\n"
