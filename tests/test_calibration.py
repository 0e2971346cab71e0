"""The uncertainty's scale: fitted in closed form, and on the voxels and with the values that enhancing gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lfmri.cli import run
from lfmri_export.export import CALIBRATED_SCANS
from lfmri_export.golden import STEPS, Golden
from lfmri_runtime.backends import Step, open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.contract import render
from lfmri_runtime.enhancer import Enhancer
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.volume import read_scan
from lfmri_trainer.baselines.flow import Flow
from lfmri_trainer.calibration import SAMPLES, SLICES, calibrate, coverage, crossings, fit_scale
from lfmri_trainer.simulation.pairs import low_path, read_pairs
from lfmri_trainer.working import WorkingPair, working_pairs

from .bundles import SHARE, MakeBundle, contract, numpy_euler, step_graph
from .training_fixtures import SIDE, parameters, tiny_settings, write_tiny_pairs

Float32Array = NDArray[np.float32]
PROCESSING = contract().processing


class Smeared(Step):
    """Predicts y and shares of x_t and of its neighbour along the columns, so that the planes differ."""

    name = provider = precision = "smeared"
    seconds = 0.0

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        x_1 = 1.5 * y + np.float32(0.2) * x_t + np.float32(0.3) * np.roll(x_t, 1, axis=-1)
        moved: Float32Array = x_t + np.float32(dt / (1 - t)) * (x_1 - x_t)
        return moved


@pytest.mark.parametrize("axis", ["R", "A", "S"])
def test_crossings_are_what_enhancing_gives(make_bundle: MakeBundle, tmp_path: Path, axis: str) -> None:
    folder = write_tiny_pairs(tmp_path / "pairs", (("s1", "validation", axis),))
    (row,) = read_pairs(folder)
    (pair,) = working_pairs(folder, [row], PROCESSING)
    found = crossings(Smeared(), pair, PROCESSING, source_std=0.5, steps=2, samples=3)
    scan = read_scan(low_path(folder, row))
    enhancer = Enhancer(open_bundle(make_bundle()), step=Smeared())
    enhanced = enhancer.enhance(scan.data, scan.affine, steps=2, samples=3)
    assert enhanced.std is not None
    lines = np.ix_(*found.indices)
    for name, volume in (("mean", enhanced.mean), ("std", enhanced.std)):
        expected = np.moveaxis(volume, "RAS".index(axis), -1)[lines] / enhanced.scale
        assert expected.shape == (SLICES, SLICES, SIDE - 3)
        # y is kept in half precision among the pairs, which all samples share.
        np.testing.assert_allclose(getattr(found, name), expected, atol={"mean": 2e-3, "std": 1e-5}[name])
    assert (found.mean == PROCESSING.high_field.limit).any(), "so that clipping is seen"
    assert found.mean.min() == 0
    assert found.std.mean() > 0.05
    np.testing.assert_array_equal(found.truth, np.moveaxis(pair.target, "RAS".index(axis), -1)[lines][..., : SIDE - 3])
    np.testing.assert_array_equal(found.inside, found.truth > 0.05)
    for indices in found.indices:
        assert 5 < indices.min() < SIDE / 2 < indices.max() < SIDE - 5, "in the head and on both sides of its middle"


def test_a_pair_without_signal_is_refused() -> None:
    empty = np.zeros((SIDE,) * 3, np.float16)
    with pytest.raises(InputRefused, match="s1-S: no slice holds signal"):
        crossings(
            Smeared(),
            WorkingPair(parameters("s1", "validation", "S"), empty, empty),
            PROCESSING,
            source_std=1.0,
            steps=2,
            samples=2,
        )


def test_a_known_deviation_gives_its_scale_and_its_coverages() -> None:
    rng = np.random.default_rng(1)
    std = rng.uniform(0.01, 0.2, 200_000).astype(np.float32)
    error = (1.7 * std * rng.standard_normal(std.shape)).astype(np.float32)
    scale = fit_scale(error, std)
    assert scale == pytest.approx(1.7, rel=0.01)
    for level in (0.5, 0.8, 0.9, 0.95):
        assert coverage(error, np.float32(scale) * std, level) == pytest.approx(level, abs=0.005)
    assert coverage(error, std, 0.9) == pytest.approx(1 - 2 * stats.norm.sf(1.645 / 1.7), abs=0.005)


def test_voxels_without_deviation_do_not_break_the_fit() -> None:
    rng = np.random.default_rng(2)
    error, std = rng.standard_normal(10_000).astype(np.float32), np.ones(10_000, np.float32)
    std[:500] = 0
    scale = fit_scale(error, std)
    assert coverage(error, np.float32(scale) * std, 0.9) == pytest.approx(0.9, abs=0.001)
    assert fit_scale(error, np.zeros_like(std)) == np.inf
    error[:500] = 0
    assert fit_scale(error, std) < scale, "no deviation is right where there is no error"


def made_up_pairs(number: int, *, deviation: float) -> list[WorkingPair]:
    """Pairs whose truth lies around what two steps of the noisy graph give on average."""
    rng = np.random.default_rng(3)
    y = rng.uniform(0.3, 0.8, (number, *(SIDE,) * 3)).astype(np.float16)
    truth = (1 + SHARE / 2) * y.astype(np.float32) + deviation * rng.standard_normal(y.shape)
    rows = [parameters(f"s{n}", "validation", "S") for n in range(number)]
    return [WorkingPair(*each) for each in zip(rows, y, truth.astype(np.float16), strict=True)]


def test_the_scale_of_a_known_flow(make_bundle: MakeBundle) -> None:
    """The samples deviate by b, and by Student's t with their number; the truth by more."""
    step = open_backend(open_bundle(make_bundle("noisy")), threads=1)
    seen: list[tuple[int, int]] = []
    pairs = made_up_pairs(4, deviation=0.05)
    (found,) = calibrate(
        step, pairs, PROCESSING, source_std=1.0, steps=(1, 2), progress=lambda done, total: seen.append((done, total))
    )
    assert (found.steps, found.samples, found.scans, found.subjects) == (2, SAMPLES, 4, ("s0", "s1", "s2", "s3"))
    assert found.voxels == 4 * SLICES**2 * SIDE
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    b = SHARE * (1 + SHARE) / 2
    ratio = np.hypot(0.05, b / np.sqrt(SAMPLES)) / b
    assert found.scale == pytest.approx(ratio * stats.t.ppf(0.95, SAMPLES - 1) / stats.norm.ppf(0.95), rel=0.1)


def test_no_pairs_and_no_deviation_give_no_calibration() -> None:
    class Certain(Smeared):
        def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
            return y

    assert calibrate(Smeared(), [], PROCESSING, source_std=1.0, steps=(2, 5)) == ()
    assert calibrate(Certain(), made_up_pairs(1, deviation=0.1), PROCESSING, source_std=1.0, steps=(2,)) == ()


def known_golden(*_: Any, **__: Any) -> Golden:
    x_0, y = np.random.default_rng(20).random((2, 2, 1, 64, 64), np.float32)
    return Golden(x_0, y, y, {steps: numpy_euler(x_0, y, share=SHARE, steps=steps) for steps in STEPS})


def test_an_export_fits_the_scale_on_validation_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole export but for its network, in whose place the noisy graph stands."""
    for name, known in (
        ("load_weights", lambda *_: None),
        ("make_golden", known_golden),
        ("export_step", lambda *_, **__: step_graph(SHARE).SerializeToString()),
    ):
        monkeypatch.setattr(f"lfmri_export.export.{name}", known)
    splits = (("s1", "train", "S"), *(("s2", "validation", axis) for axis in "RAS"), ("s3", "validation", "A"))
    splits += (("s3", "validation", "S"), ("s4", "test", "S"))
    pairs, folder, out = write_tiny_pairs(tmp_path / "pairs", splits), tmp_path / "run", tmp_path / "bundle"
    folder.mkdir()
    tiny_settings(pairs, initial="gone").save(folder)
    (folder / "processing.json").write_text(render(PROCESSING))
    summary: dict[str, Any] = {}
    for steps, batch, subjects in ((3, 16, ["s0"]), (2, 16, ["s0"]), (1, 16, ["s0", "s1"]), (4, 2, ["s0", "s1"])):
        before = {"started_from": summary} if summary else {}
        summary = {"steps": steps, "steps_in_all": 9, "batch": batch, "training_subjects": subjects, **before}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert run(["export", str(folder), "--out", str(out), "--precision", "float32"]) == 0
    bundle = open_bundle(out)
    chosen = [row for row in read_pairs(pairs) if row.pair in ("s2-A", "s2-S", "s3-S")]  # the middles of thirds
    step, held_out = open_backend(bundle, threads=1), working_pairs(pairs, chosen, PROCESSING)
    expected = calibrate(step, held_out, PROCESSING, source_std=bundle.contract.source_std, steps=(2, 5, 10))
    found = bundle.contract.uncertainty
    shown, card = capsys.readouterr().out, bundle.read("MODEL_CARD.md").decode()
    for calibration, same in zip(found, expected, strict=True):
        assert (calibration.scans, calibration.subjects) == (CALIBRATED_SCANS, ("s2", "s3"))
        assert (calibration.steps, calibration.voxels) == (same.steps, same.voxels)
        assert calibration.scale == pytest.approx(same.scale, rel=1e-3)
        assert f"{calibration.steps:3d} steps: uncertainty scaled by {calibration.scale:.2f}" in shown
        assert f"| {calibration.steps} | {calibration.scale:.2f} |" in card
    earlier = [line for line in card.splitlines() if line.startswith("- started from: ")]
    assert earlier == [
        "- started from: steps 1, steps_in_all 9, batch 16",  # of the same subjects, which are not said again
        "- started from: steps 2, steps_in_all 9, batch 16, training_subjects s0",
        "- started from: steps 3, steps_in_all 9, batch 16",
    ]
    budget = ["3 steps of 16 crops", "2 steps of 16 crops", "1 steps of 16 crops", "4 steps of 2 crops"]
    assert Flow(bundle, step, 1).budget == ", then ".join(budget)
    assert str(tmp_path) not in json.dumps(bundle.contract.training)
