"""docs/lowfield.md: what its script measures, on a phantom with known answers; and its figures are the script's."""

import importlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))  # the scripts stand beside each other, outside any package
lowfield, measures, judgement, pages = map(
    importlib.import_module, ("lowfield", "lowfield_measures", "lowfield_judgement", "lowfield_page")
)

SHAPE = (64, 48)
CHECKERS = np.indices(SHAPE).sum(axis=0) % 2 * 2 - 1
BOXES = measures.Boxes(
    white_matter=(0, 10, 0, 10), lesion=(44, 60, 10, 30), surround=(12, 20, 10, 30), edge=(16, 48, 12, 28)
)
OUTSIDE = (0, 60, 40, 48)


def gaussian_edge(sigma: float) -> np.ndarray:
    """1 at low i, 0 at high i, halfway at 31.3, blurred by a Gaussian of `sigma` voxels."""
    return np.array([0.5 * math.erfc((i - 31.3) / (sigma * math.sqrt(2))) for i in range(SHAPE[0])])


def phantom(sigma: float, *, unit: float = 1.0) -> np.ndarray:
    """Surroundings of 100 and a lesion of 40; white matter of 80 +- 4, outside +- 2."""
    image = np.repeat((40 + 60 * gaussian_edge(sigma))[:, None], SHAPE[1], axis=1)
    image[:10, :10] = 80 + 4 * CHECKERS[:10, :10]
    image[:60, 40:] = 3 + 2 * CHECKERS[:60, 40:]
    return (unit * image).astype(np.float32)


@pytest.mark.parametrize(("sigma", "spacing", "unit"), [(2.5, 1.0, 1.0), (3.5, 1.0, 1e-3), (3.0, 0.46, 700.0)])
def test_the_phantoms_figures_are_those_of_its_formula(sigma: float, spacing: float, unit: float) -> None:
    image = phantom(sigma, unit=unit)
    figures = measures.measure(image, BOXES, spacing=spacing)
    assert figures["white_matter"] == pytest.approx(0.05, abs=1e-4)
    assert figures["lesion"] == pytest.approx(0, abs=1e-3)
    assert figures["contrast"] == pytest.approx(-0.6, abs=1e-3)
    assert figures["rise"] == pytest.approx(2.5631 * sigma * spacing, rel=0.02)  # 2 x the normal's 90 % quantile
    assert measures.background(image, BOXES, OUTSIDE) == pytest.approx(0.025, abs=1e-4)


def test_the_rise_of_a_ramp_is_eight_tenths_of_it_whichever_way() -> None:
    ramp = np.interp(np.arange(40), [12, 22], [3, 8]).astype(np.float32)
    for profile in (ramp, ramp[::-1], -ramp):
        assert measures.rise(profile, 0.5) == pytest.approx(0.8 * 10 * 0.5, rel=1e-5)


def test_there_is_no_rise_where_there_is_no_edge() -> None:
    assert measures.rise(np.ones(30, dtype=np.float32), 1.0) is None


def test_slices_correlate_by_the_noise_that_they_share() -> None:
    rows, columns = CHECKERS, np.where(np.arange(SHAPE[1]) % 2, 1, -1) * np.ones(SHAPE)
    volume = np.stack([rows, rows + columns, columns], axis=-1).astype(np.float32)
    assert measures.slice_correlations(volume, OUTSIDE) == {"1-2": 0.71, "2-3": 0.71, "1-3": 0.0}


def test_the_assumed_affine_is_the_seen_orientation_and_voxel_size() -> None:
    assert nib.aff2axcodes(lowfield.AFFINE) == ("P", "R", "I")
    np.testing.assert_array_equal(nib.affines.voxel_sizes(lowfield.AFFINE), (1, 1, 5))


def test_the_slice_before_is_the_scans_and_the_slice_after_lies_at_its_place(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).uniform(1, 2, (10, 12, 4)).astype(np.float32)
    result = np.broadcast_to(np.arange(16, dtype=np.float32), (10, 12, 16))
    isotropic = lowfield.AFFINE @ np.diag([1, 1, 0.2, 1])
    for name, data, affine in (("scan", scan, lowfield.AFFINE), ("result", result, isotropic)):
        nib.Nifti1Image(data, affine).to_filename(tmp_path / f"{name}.nii.gz")
    before, after = lowfield.axial([tmp_path / "scan.nii.gz", tmp_path / "result.nii.gz"], 2)
    np.testing.assert_allclose(before, scan[..., 2], rtol=1e-5)
    np.testing.assert_array_equal(after, 10)


def test_the_verdicts_count_patients() -> None:
    def patient(noise: tuple[float, float], contrast: tuple[float, float], rise: tuple[float, float | None]) -> dict:
        columns = zip(noise, contrast, rise, strict=True)
        figures = [{"white_matter": n, "lesion": n, "contrast": c, "rise": r} for n, c, r in columns]
        return {"background": noise, "measures": [*figures, {"contrast": -0.5}]}

    report = {
        "steps": [1],
        "patients": {
            "A": patient((0.10, 0.05), (-0.4, -0.5), (3.0, 2.0)),
            "B": patient((0.10, 0.102), (-0.4, -0.2), (3.0, None)),
            "C": patient((0.10, 0.20), (-0.6, -0.57), (3.0, 3.1)),
        },
    }
    noise = ["better 1, same 1, worse 1"]
    assert list(judgement.verdicts(report).values()) == [noise, noise, noise, noise, ["better 2, same 0, worse 1"]]
    assert judgement.contrasts(report) == [pytest.approx({"A": 1.25, "B": 0.5, "C": 0.95})]
    assert "- 1 step: A 125 %, B 50 %, C 95 %. Weaker than 90 %: B.\n" in judgement.judgement(report)


def test_the_page_holds_the_figures_that_the_script_left_and_no_others() -> None:
    report = json.loads((DOCS / "lowfield.json").read_text())
    assert (DOCS / "lowfield.md").read_text() == pages.page(report)
    for key, patient in lowfield.PATIENTS.items():
        constants = json.loads(json.dumps(asdict(patient)))
        assert constants.items() <= report["patients"][key].items(), f"{key}: run docs/lowfield.py again"


def test_the_pictures_are_small() -> None:
    pictures = sorted(DOCS.glob("lowfield-*.png"))
    assert [path.name for path in pictures] == ["lowfield-boxes.png", "lowfield-slices.png"]
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
