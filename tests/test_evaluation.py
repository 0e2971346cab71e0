"""Slice-wise scores of volumes: the rule, the columns, the summary, and the files and tables they are written to."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from scipy.ndimage import gaussian_filter

from lfmri_runtime import metrics
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.evaluation import COLUMNS, RULE, Evaluation, evaluate, summary_table, write_csv, write_json
from lfmri_runtime.lpips import Lpips

Array = NDArray[np.float32]
SHAPE = (36, 40, 44)


@pytest.fixture(scope="module")
def ball() -> NDArray[np.bool_]:
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    inside: NDArray[np.bool_] = (i - 18) ** 2 + (j - 20) ** 2 + (k - 22) ** 2 < 15**2
    return inside


@pytest.fixture(scope="module")
def reference(ball: NDArray[np.bool_]) -> Array:
    texture = gaussian_filter(np.random.default_rng(5).random(SHAPE), 1.5)
    texture = (texture - texture.min()) / np.ptp(texture)
    return (ball * (0.3 + 0.7 * texture)).astype(np.float32)


@pytest.fixture(scope="module")
def image(reference: Array) -> Array:
    noise = np.random.default_rng(6).standard_normal(SHAPE)
    return (gaussian_filter(reference, 1.0) + 0.02 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return Lpips(threads=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_score_of_every_slice(
    image: Array, reference: Array, ball: NDArray[np.bool_], lpips: Lpips, axis: int
) -> None:
    found = evaluate(image, reference, axis=axis, mask=ball, lpips=lpips)
    covered = [n for n in range(SHAPE[axis]) if np.take(ball, n, axis).mean() >= 0.05]
    assert [row.index for row in found.rows] == covered
    assert 0 < len(covered) < SHAPE[axis]
    for row in found.rows:
        a, b, m = (np.take(volume, row.index, axis) for volume in (image, reference, ball))
        expected = {
            "psnr_db": metrics.psnr(a, b),
            "ssim": metrics.ssim(a, b),
            "lpips": float(lpips(a[None], b[None])[0]),
            "mask_psnr_db": metrics.masked_psnr(a, b, m),
            "mask_ssim": metrics.masked_ssim(a, b, m),
            "mask_lpips": float(lpips((a * m)[None], (b * m)[None])[0]),
        }
        assert list(row.scores) == [column.key for column in COLUMNS]
        assert row.scores == pytest.approx(expected, rel=1e-4)
    for key, summary in found.summary.items():
        values = [row.scores[key] for row in found.rows]
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        assert (summary.mean, summary.std) == pytest.approx((mean, deviation))
    assert (found.axis, found.masked, found.data_range, found.rule) == (axis, True, 1.0, RULE)
    assert found.lpips == "LPIPS v0.1, AlexNet"


def test_columns_follow_what_was_given(image: Array, reference: Array, ball: NDArray[np.bool_], lpips: Lpips) -> None:
    assert list(evaluate(image, reference, axis=0).summary) == ["psnr_db", "ssim"]
    assert list(evaluate(image, reference, axis=0, lpips=lpips).summary) == ["psnr_db", "ssim", "lpips"]
    masked = evaluate(image, reference, axis=0, mask=ball)
    assert list(masked.summary) == ["psnr_db", "ssim", "mask_psnr_db", "mask_ssim"]
    assert masked.lpips is None


def test_without_a_mask_the_reference_says_which_slices_count(reference: Array) -> None:
    volume = np.zeros(SHAPE, np.float32)
    # 40 x 44 pixels: 88 are 5 %. Slice 3 has just enough, slice 4 one too few, slice 5 enough but too dark.
    volume[3].flat[:88] = 0.051
    volume[4].flat[:87] = 1.0
    volume[5].flat[:88] = 0.049
    found = evaluate(volume + 0.5, volume, axis=0)
    assert [row.index for row in found.rows] == [3]
    scaled = evaluate(4000 * (volume + 0.5), 4000 * volume, axis=0, data_range=4000.0)
    assert [row.index for row in scaled.rows] == [3]
    assert [row.index for row in evaluate(volume + 0.5, volume, axis=0, first=10).rows] == [13]
    assert scaled.rows[0].scores == pytest.approx(found.rows[0].scores, rel=1e-4)


def test_background_inflates_the_whole_slice(reference: Array, ball: NDArray[np.bool_]) -> None:
    scores = evaluate(reference * np.float32(0.9), reference, axis=2, mask=ball).summary
    assert scores["psnr_db"].mean > scores["mask_psnr_db"].mean + 2


def test_a_perfect_volume(reference: Array, ball: NDArray[np.bool_], tmp_path: Path) -> None:
    perfect = evaluate(reference, reference, axis=1, mask=ball)
    assert perfect.summary["psnr_db"].mean == math.inf
    assert math.isnan(perfect.summary["psnr_db"].std)
    assert perfect.summary["ssim"].mean == pytest.approx(1.0)
    write_json(tmp_path / "scores.json", {"perfect": perfect})
    content = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert content["methods"]["perfect"]["summary"]["psnr_db"] == {"mean": "inf", "std": "nan"}
    assert "inf" in rendered({"perfect": perfect})
    assert "nan" not in rendered({"perfect": perfect})


def test_one_slice_that_is_perfect_does_not_hide_the_infinity(reference: Array, image: Array) -> None:
    mixed = image.copy()
    mixed[18] = reference[18]
    assert evaluate(mixed, reference, axis=0).summary["psnr_db"].mean == math.inf


@pytest.fixture(scope="module")
def both(image: Array, reference: Array, ball: NDArray[np.bool_], lpips: Lpips) -> dict[str, Evaluation]:
    blurred = gaussian_filter(image, 1.5)
    return {
        "interpolation": evaluate(blurred, reference, axis=2, mask=ball, lpips=lpips),
        "enhanced, 5 steps": evaluate(image, reference, axis=2, mask=ball, lpips=lpips),
    }


def test_csv_gives_every_slice_back(both: dict[str, Evaluation], tmp_path: Path) -> None:
    write_csv(tmp_path / "scores.csv", both)
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    expected = [
        {"method": method, "slice": str(row.index), **{key: repr(value) for key, value in row.scores.items()}}
        for method, evaluation in both.items()
        for row in evaluation.rows
    ]
    assert lines == expected
    assert list(lines[0]) == ["method", "slice", *(column.key for column in COLUMNS)]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_json_gives_everything_back(both: dict[str, Evaluation], tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", both)
    content = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in ("rule", "axis", "plane", "data_range", "lpips", "masked")} == {
        "rule": RULE,
        "axis": 2,
        "plane": "axial",
        "data_range": 1.0,
        "lpips": "LPIPS v0.1, AlexNet",
        "masked": True,
    }
    assert list(content["methods"]) == list(both)
    for method, evaluation in both.items():
        written = content["methods"][method]
        assert written["summary"] == {key: dataclasses.asdict(value) for key, value in evaluation.summary.items()}
        assert written["slices"] == [{"slice": row.index, **row.scores} for row in evaluation.rows]


def rendered(evaluations: dict[str, Evaluation], **options: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(summary_table(evaluations, **options))
    return stream.getvalue()


def test_the_table_shows_mean_and_deviation(both: dict[str, Evaluation]) -> None:
    text = rendered(both, title="Scores of [sub-01]")
    assert "Scores of [sub-01]" in text
    for label in ("PSNR (dB) ↑", "SSIM ↑", "LPIPS ↓", "PSNR in mask (dB) ↑", "SSIM in mask ↑", "LPIPS in mask ↓"):
        assert label in text
    for method, evaluation in both.items():
        line = next(line for line in text.splitlines() if method in line)
        psnr, lpips = evaluation.summary["psnr_db"], evaluation.summary["mask_lpips"]
        assert f"{psnr.mean:.2f} ± {psnr.std:.2f}" in line
        assert f"{lpips.mean:.3f} ± {lpips.std:.3f}" in line
    assert f"{len(both['interpolation'].rows)} axial slices" in text


def test_methods_judged_otherwise_do_not_share_a_table(
    both: dict[str, Evaluation], image: Array, reference: Array, tmp_path: Path
) -> None:
    other = both | {"other axis": evaluate(image, reference, axis=0)}
    shorter = both | {"fewer": dataclasses.replace(both["interpolation"], rows=both["interpolation"].rows[1:])}
    for unlike in (other, shorter):
        for take in (lambda e: write_csv(tmp_path / "x", e), lambda e: write_json(tmp_path / "x", e), summary_table):
            with pytest.raises(UsageError, match="were not judged alike"):
                take(unlike)
    with pytest.raises(UsageError, match="at least one method"):
        summary_table({})
    assert not list(tmp_path.iterdir())


def test_input_that_cannot_be_judged_is_refused(image: Array, reference: Array, ball: NDArray[np.bool_]) -> None:
    for arguments in ((image[1:], reference), (image[0], reference[0])):
        with pytest.raises(InputRefused, match="expected one 3-D shape"):
            evaluate(*arguments, axis=0)
    with pytest.raises(InputRefused, match="expected one 3-D shape"):
        evaluate(image, reference, axis=0, mask=ball[1:])
    for axis in (3, -1):
        with pytest.raises(UsageError, match=f"axis {axis} was asked for"):
            evaluate(image, reference, axis=axis)
    for mask in (np.zeros(SHAPE, bool), None):
        with pytest.raises(InputRefused, match="no slice is covered to 5%"):
            evaluate(image, np.zeros_like(reference), axis=0, mask=mask)
    hole = image.copy()
    hole[18, 20, 22] = np.nan
    with pytest.raises(InputRefused, match="not finite"):
        evaluate(hole, reference, axis=0)
