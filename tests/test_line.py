"""The whole line on nilearn's MNI152 volume, as a user would type it: simulate, train, export, enhance, evaluate."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
import pytest

from lfmri_export.start import start_from_bundle
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.errors import BundleRefused, UsageError
from lfmri_runtime.volume import read_scan

from .bundles import MakeBundle, change_contract

TEMPLATE = Path(nilearn.__file__).parent / "datasets" / "data"
#: The middle of the template's back half, with what air is beside it: a sixth of its voxels.
MIDDLE = (slice(20, 177), slice(18, 118), slice(50, 140))


def lfmri(*arguments: object) -> str:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "lfmri", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the five commands have run one after the other."""
    root = tmp_path_factory.mktemp("line")
    subject = root / "subjects" / "mni152"
    subject.mkdir(parents=True)
    for kind, name in (("t1", "T1w_brain"), ("gm", "GM"), ("wm", "WM")):
        image = nib.Nifti1Image.from_filename(TEMPLATE / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        image.slicer[MIDDLE].to_filename(subject / f"{name}.nii.gz")
    lfmri("simulate", "--subjects", root / "subjects", "--out", root / "pairs", "--preset", "siqt-k4", "--workers", 1)
    lfmri(
        *("train", "--pairs", root / "pairs", "--run", root / "run", "--max-steps", 50, "--crop", 64),
        *("--learning-rate", 1e-3, "--preset", "iqt-cfm-edge", "--precision", "32-true"),  # bfloat16 may be imitated
    )
    lfmri("export", root / "run", "--out", root / "bundle", "--data", "an average of 152 adults, ICBM notice")
    scan = root / "pairs" / "pairs" / "mni152_siqt-k4_000" / "low.nii.gz"
    lfmri(
        "enhance", scan, "-o", root / "enhanced.nii.gz", "--bundle", root / "bundle", "--report", root / "report.html"
    )
    subject_folder = root / "pairs" / "subjects" / "mni152"
    lfmri(
        *(
            "evaluate",
            root / "enhanced.nii.gz",
            subject_folder / "brain.nii.gz",
            "--mask",
            subject_folder / "mask.nii.gz",
        ),
        *("--input", scan, "--json", root / "scores.json", "--csv", root / "scores.csv"),
    )
    return root


def test_the_bundle_is_verified_and_says_what_it_was_trained_on(line: Path) -> None:
    contract = open_bundle(line / "bundle").contract
    assert contract.parameters == 5_253_249
    assert contract.precision == "float16"
    assert contract.training["training_subjects"] == ["mni152"]
    assert contract.training["steps"] == 50
    assert contract.uncertainty == (), "the one subject was trained on"
    card = (line / "bundle" / "MODEL_CARD.md").read_text()
    assert "- data: an average of 152 adults, ICBM notice\n" in card
    assert "Learned from simulated scans of the 1 subjects above" in card
    assert "Not calibrated" in card
    assert {row["steps"] for row in contract.training["parity"]} == {1, 2, 5, 10}
    assert min(row["psnr"] for row in contract.training["parity"]) >= 60


def test_the_enhanced_scan_lies_on_the_subjects_voxels(line: Path) -> None:
    enhanced = read_scan(line / "enhanced.nii.gz")
    subject = read_scan(line / "pairs" / "subjects" / "mni152" / "brain.nii.gz")
    np.testing.assert_allclose(enhanced.affine, subject.affine, atol=1e-4)
    assert enhanced.data.shape[:2] == subject.data.shape[:2]
    assert subject.data.shape[2] - 4 < enhanced.data.shape[2] <= subject.data.shape[2]


def test_fifty_steps_already_learn_the_contrast(line: Path) -> None:
    """The little that fifty steps teach must come through the whole line, far above noise."""
    scores = json.loads((line / "scores.json").read_text())
    text = json.dumps(scores)
    assert "interpolation" in text
    assert "enhanced" in text
    image = read_scan(line / "enhanced.nii.gz").data
    truth = read_scan(line / "pairs" / "subjects" / "mni152" / "brain.nii.gz").data[..., : image.shape[2]]
    assert np.corrcoef(image[::2, ::2, ::2].ravel(), truth[::2, ::2, ::2].ravel())[0, 1] > 0.8


def test_the_page_and_the_table_are_there(line: Path) -> None:
    assert (line / "report.html").stat().st_size > 100_000
    assert (line / "scores.csv").read_text().count("\n") > 80


def test_a_run_starts_from_the_bundles_weights(line: Path) -> None:
    start_from_bundle(line / "bundle", line / "start")
    with np.load(line / "run" / "weights.npz") as trained, np.load(line / "start" / "weights.npz") as found:
        assert set(found.files) == set(trained.files)
        for name in trained.files:
            exact = name.startswith("time_embedding.")
            kept = trained[name] if exact else trained[name].astype(np.float16).astype(np.float32)
            assert np.array_equal(found[name], kept), name
    assert _summary(line / "start") == _summary(line / "run")
    run = json.loads((line / "start" / "config.json").read_text())
    assert run == {**json.loads((line / "run" / "config.json").read_text()), "pairs": ""}


def test_a_run_starts_only_in_a_new_folder(line: Path) -> None:
    with pytest.raises(UsageError, match="expected a new folder"):
        start_from_bundle(line / "bundle", line / "run")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no such network", "expected one of iqt-cfm,"),
        ("another graph", "step.onnx does not hold the weights of iqt-cfm-edge"),
        ("other results", "expected the golden results"),
    ],
)
def test_a_run_does_not_start_from_what_is_not_known(
    line: Path, tmp_path: Path, make_bundle: MakeBundle, wrong: str, message: str
) -> None:
    if wrong == "other results":
        bundle = shutil.copytree(line / "bundle", tmp_path / "bundle")
        change_contract(bundle, lambda document: document.update(prediction="velocity"))
    else:
        bundle = make_bundle(network="iqt-cfm-edge" if wrong == "another graph" else "none")
    with pytest.raises(BundleRefused, match=message):
        start_from_bundle(bundle, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _summary(run: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((run / "summary.json").read_text())
    return document
