"""`lfmri benchmark`: which slices, what is kept and resumed, the tables, the figure, the page, wrong inputs."""

import ast
import contextlib
import csv
import html.parser
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from lfmri.cli import run
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.calibration import Calibration
from lfmri_runtime.consistency import THRESHOLD
from lfmri_runtime.errors import InputRefused
from lfmri_runtime.evaluation import COLUMNS
from lfmri_runtime.evaluation.scores import MIN_COVERAGE
from lfmri_runtime.files import sha256_file
from lfmri_runtime.page.article import Section, Table, write_article
from lfmri_runtime.page.pictures import colour_table
from lfmri_trainer.baselines.fitted import load_arrays, save_arrays
from lfmri_trainer.baselines.interpolation import Interpolation
from lfmri_trainer.benchmark import calibration, consistency, enhanced, results, unaltered
from lfmri_trainer.benchmark.cases import choose_sets, open_cases
from lfmri_trainer.benchmark.consistency import DIAMETERS, SPHERES, STRENGTHS, Checked
from lfmri_trainer.benchmark.figure import LARGEST_ERROR, LINE, MARGIN, WIDTH, draw_figure
from lfmri_trainer.benchmark.provenance import command_line, commit, hashes, maker
from lfmri_trainer.benchmark.quick import SLICES
from lfmri_trainer.benchmark.results import Result, code_hash
from lfmri_trainer.benchmark.run import Scan, SetResults
from lfmri_trainer.benchmark.tables import subject_table
from lfmri_trainer.calibration import SAMPLES, Crossings
from lfmri_trainer.network.presets import build_network
from lfmri_trainer.simulation.pairs import read_pairs, read_volume, subject_path, write_pairs, write_volume

from .bundles import MakeBundle, contract
from .training_fixtures import SIDE, tiny_settings, write_tiny_pairs

ROOT = Path(__file__).parents[1]
#: Two scans of one head and one of another are tested; one is trained on.
PAIRS = (("s1", "train", "S"), ("s4", "test", "R"), ("s4", "test", "S"), ("s5", "test", "A"))
SETS = ("--ind", "tiny", "--ood", "tiny-ood", "--ind-slices", "8", "--ood-slices", "200")
FIT = ("--fit", "iqt-rf:patches=4000,trees=2,leaf=300")
FILES = {
    "benchmark.md",
    "benchmark.html",
    "scores.csv",
    "differences.csv",
    "calibration.csv",
    "consistency.csv",
    "ind.png",
    "ood.png",
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scan of s5 is the out-of-distribution one."""
    folder = write_tiny_pairs(tmp_path_factory.mktemp("tiny") / "pairs", PAIRS)
    write_pairs(folder, [replace(r, preset="tiny-ood") if r.subject == "s5" else r for r in read_pairs(folder)])
    return folder


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle) -> Path:
    calibration = Calibration(steps=5, samples=6, scale=3.5, subjects=("v",), scans=1, voxels=9)
    return make_bundle("noisy", uncertainty=(calibration,))


@pytest.fixture(scope="module")
def arguments(pairs: Path, bundle: Path) -> list[str]:
    options = ["--pairs", str(pairs), "--bundle", str(bundle), "--steps", "1,5", "--uncertainty-steps", "2,5"]
    return ["benchmark", *options, "--threads", "1", *SETS, *FIT, "--methods", "iqt-rf,flow"]


@pytest.fixture(scope="module")
def made(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lfmri", *arguments, "--out", str(out)])
        assert run(sys.argv[1:]) == 0
    return out


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_slices_are_shared_out_and_spread(pairs: Path) -> None:
    rows = read_pairs(pairs)
    ind, ood = choose_sets(rows, [("InD", "tiny", 8), ("OOD", "tiny-ood", 200), ("none", "other", 5)])
    assert [pair.pair for pair in ind.pairs] == ["s4-R", "s4-S"]
    for case in open_cases(pairs, ind, contract().processing):
        request = case.request
        assert len(request.indices) == 4
        assert request.normal != request.thick_axis
        assert case.reference.shape == case.mask.shape == (4, SIDE - 3, SIDE)
        assert (case.mask.mean(axis=(1, 2)) >= MIN_COVERAGE).all()
        gaps = np.diff(request.indices)
        assert gaps.max() - gaps.min() <= 1
        for slices in zip(request.slices(request.y), case.reference, strict=True):
            assert np.corrcoef(*(image.ravel() for image in slices))[0, 1] > 0.8, "both show the same slice"
    (case,) = open_cases(pairs, ood, contract().processing)
    assert 20 < len(case.request.indices) < SIDE, "all that the mask fills, no more than there are"
    assert len(set(case.request.indices)) == len(case.request.indices)


def test_a_case_is_another_when_the_head_that_it_is_scored_against_changes(tmp_path: Path) -> None:
    folder = write_tiny_pairs(tmp_path / "pairs", (("s5", "test", "A"),))
    (row,) = read_pairs(folder)
    brain, affine = read_volume(subject_path(folder, "s5", "brain"))

    def described(anatomy: str) -> tuple[str, list[str]]:
        (chosen,) = choose_sets([replace(row, anatomy=anatomy)], [("InD", "tiny", 3)])
        (case,) = open_cases(folder, chosen, contract().processing)
        scored = Scan(pair=case.pair, identity=case.identity, picture=case.reference[0])
        told = hashes(folder, open_bundle(), [SetResults(test_set=chosen, scans=(scored,), results={})])
        return case.identity, [name for name, _ in told]

    alone, names = described("brain")
    assert names[2:] == ["s5-A, low field", "s5, brain", "s5, mask"]
    assert described("head") == (alone, names), "without a head the brain is the reference"
    found = []
    for bright in (60, 120):
        write_volume(subject_path(folder, "s5", "head"), np.where(brain > 0, brain, np.float32(bright)), affine)
        assert described("brain") == (alone, names), "a head takes no part in it"
        identity, told = described("head")
        assert told == [*names, "s5, head"]
        found.append(identity)
    assert len({alone, *found}) == 3


def test_with_fewer_slices_than_scans_each_gives_one(pairs: Path) -> None:
    (chosen,) = choose_sets(read_pairs(pairs), [("InD", "tiny", 1)])
    cases = list(open_cases(pairs, chosen, contract().processing))
    assert [len(case.request.indices) for case in cases] == [1]


def test_a_mask_that_holds_no_slice_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_pairs(tmp_path / "pairs", (("s5", "test", "A"),))
    small = np.zeros((SIDE,) * 3, np.uint8)
    small[16:24, 16:24, 16:24] = 1  # 64 of 1600 pixels
    write_volume(subject_path(folder, "s5", "mask"), small, np.eye(4))
    (chosen,) = choose_sets(read_pairs(folder), [("InD", "tiny", 3)])
    with pytest.raises(InputRefused, match="look at its mask"):
        list(open_cases(folder, chosen, contract().processing))


def test_spheres_that_no_scan_holds_are_counted(made: Path) -> None:
    lines = lines_of(made / "consistency.csv")
    assert [(x["set"], x["pair"]) for x in lines if not x["sphere"]] == [
        ("InD", "s4-R"),
        ("InD", "s4-S"),
        ("OOD", "s5-A"),
    ]
    spheres = [x for x in lines if x["sphere"]]
    assert len(spheres) == 3 * len(DIAMETERS) * len(STRENGTHS) * SPHERES
    numbers = {
        (pair, size, change): np.mean(
            [float(x["number"]) for x in spheres if (x["pair"], x["diameter_mm"], x["change"]) == (pair, size, change)]
        )
        for pair, size, change in {(x["pair"], x["diameter_mm"], x["change"]) for x in spheres}
    }
    for pair in ("s4-R", "s4-S", "s5-A"):
        assert numbers[pair, "10.0", "0.4"] > numbers[pair, "6.0", "0.2"]
    assert "## Consistency" in (made / "benchmark.md").read_text(encoding="utf-8")


def test_scans_as_they_are_enhanced_are_checked_too(made: Path) -> None:
    text = section(made, "Consistency of scans as they are enhanced")
    rows = re.findall(r"^\| (InD|OOD) \| (\S+) \| (\d+\.\d) \| (\d+\.\d) \|$", text, re.M)
    assert [row[:2] for row in rows] == [("InD", "s4-R"), ("InD", "s4-S"), ("OOD", "s5-A")]
    clean = {x["pair"]: float(x["number"]) for x in lines_of(made / "consistency.csv") if not x["sphere"]}
    assert {pair: float(known) for _, pair, known, _ in rows} == pytest.approx(clean, abs=0.051)
    above = [sum(float(row[column]) > THRESHOLD for row in rows) for column in (2, 3)]
    assert f"of these 3 scans {above[0]} with the slices' own thickness and {above[1]} with" in text


def test_the_report_says_what_each_method_was_fitted_on(made: Path) -> None:
    (row,) = re.findall(r"^\| IQT-RF \| .*$", section(made, "Fits"), re.M)
    pairs, file = re.findall(r"[0-9a-f]{16}", row)
    about = json.loads(str(np.load(made / "fitted" / "iqt-rf.npz")["about"]))
    assert about["data"].startswith(pairs)
    assert sha256_file(made / "fitted" / "iqt-rf.npz").startswith(file)
    assert row.startswith("| IQT-RF | 1 | tiny | ")
    assert "| patches=4000, trees=2, leaf=300 |" in row


def test_results_of_several_commits_are_told_apart(
    made: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made, out)
    shutil.rmtree(out / "results" / "InD" / "interpolation")
    for path in out.glob("results/*/flow-1/*.npz"):
        arrays, about = load_arrays(path)
        save_arrays(path, arrays, {key: value for key, value in about.items() if key != "made"})
    monkeypatch.setattr("lfmri_trainer.benchmark.provenance.commit", lambda: "a later one")
    assert run([*arguments, "--out", str(out), "--resume"]) == 0
    own, later = maker().replace("a later one", commit()), maker()
    text = section(out, "How it was made")
    assert f"{own} (interpolation, IQT-RF, by-hand, 5 steps)" in text
    assert f"{later} (interpolation)" in text
    assert "not kept (by-hand, 1 step)" in text


def test_the_page_of_the_benchmark_is_of_the_built_in_bundle() -> None:
    assert open_bundle().sha256[:16] in (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")


def test_every_file_is_there_and_nothing_half_written(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {*FILES, "results", "fitted"}
    assert [path.name for path in (made / "fitted").iterdir()] == ["iqt-rf.npz"]
    assert not list(made.rglob("*tmp*"))


def test_scores_are_of_the_same_slices_for_every_method(made: Path) -> None:
    lines = lines_of(made / "scores.csv")
    assert list(lines[0]) == ["set", "method", "pair", "slice", *(column.key for column in COLUMNS)]
    methods = ["interpolation", "iqt-rf", "flow-1", "flow-5"]
    assert list(dict.fromkeys(line["method"] for line in lines)) == methods
    places = {m: [(x["set"], x["pair"], x["slice"]) for x in lines if x["method"] == m] for m in methods}
    assert all(places[m] == places["interpolation"] for m in methods)
    assert [name for name, *_ in places["flow-1"]].count("InD") == 8


def test_means_and_differences_follow_from_the_scores(made: Path) -> None:
    lines = lines_of(made / "scores.csv")

    def scores(method: str, key: str) -> np.ndarray:
        return np.array([float(x[key]) for x in lines if x["method"] == method and x["set"] == "InD"])

    found = [x for x in lines_of(made / "differences.csv") if x["set"] == "InD"]
    compared = [(x["method"], x["minus"]) for x in found if x["score"] == "ssim"]
    flows = [("flow-1", "interpolation"), ("flow-5", "interpolation"), ("flow-1", "iqt-rf"), ("flow-5", "iqt-rf")]
    assert compared == [("iqt-rf", "interpolation"), *flows]
    for x in found:
        difference = scores(x["method"], x["score"]) - scores(x["minus"], x["score"])
        assert float(x["mean"]) == pytest.approx(difference.mean(), rel=1e-9, abs=1e-12)
        assert float(x["low_0.95"]) <= float(x["mean"]) <= float(x["high_0.95"])
    table = section(made, "InD: scores")
    psnr = scores("flow-5", "psnr_db")
    assert f"{psnr.mean():.2f} ± {psnr.std():.2f}" in table
    assert scores("iqt-rf", "psnr_db").mean() > scores("interpolation", "psnr_db").mean() + 1


def test_each_subject_has_a_line_of_its_own(pairs: Path) -> None:
    class Proposed(Interpolation):
        key = title = "model"
        proposed = True

    subjects, rows = ("b", "a", "b"), read_pairs(pairs)[:3]
    blank = np.zeros((1, 1), np.float32)
    found = {
        key: tuple(
            Result(
                indices=np.arange(2),
                scores={column.key: np.array([first, first + better]) + better for column in COLUMNS},
                seconds=1.0,
                picture=blank,
                made="",
            )
            for first in (10.0, 20.0, 40.0)
        )
        for key, better in (("interpolation", 1.0), ("model", 2.0))
    }
    every = SetResults(
        test_set=choose_sets(read_pairs(pairs), [("InD", "tiny", 8)])[0],
        scans=tuple(
            Scan(pair=replace(row, subject=subject), identity="", picture=blank)
            for row, subject in zip(rows, subjects, strict=True)
        ),
        results=found,
    )
    table = subject_table(every, [Interpolation(), Proposed()])
    lines = [[text for text, _ in row] for row in table.rows]
    assert [line[:3] for line in lines] == [["b", "4", "26.50 → 28.00"], ["a", "2", "21.50 → 23.00"]]


def section(made: Path, heading: str) -> str:
    text = (made / "benchmark.md").read_text(encoding="utf-8")
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_the_tables_say_what_they_hold(made: Path, bundle: Path) -> None:
    made_how = section(made, "How it was made")
    assert "Command: lfmri benchmark --pairs pairs --bundle bundle --steps 1,5 --uncertainty-steps 2,5" in made_how
    assert f"Commit and machine of the scores and seconds: {maker()}. The proposed model runs" in made_how
    assert "by-hand was trained on nobody." in made_how
    scores = section(made, "InD: scores")
    assert "8 slice pairs from 2 scans of 1 unseen subject (s4), preset tiny (its distribution is assumed)" in scores
    assert "thick axis R, S, slices every 4 mm; SNR of white matter 30.0 to 30.0" in scores
    assert re.search(r"\| IQT-RF \|.*\| [\d,]+ \| \d\.\d{3} \| 4000 patches \|", scores)
    fewer = r"\d+ slice pairs of 200 asked for \(shared out evenly, and some of the pairs hold no more\)"
    assert re.search(fewer, section(made, "OOD: scores"))
    assert "by subject" not in (made / "benchmark.md").read_text(encoding="utf-8"), "one subject a set"
    differences = section(made, "InD: paired differences")
    assert "8 slices of 2 scans of 1 subject are drawn anew as if they were independent" in differences
    assert "IQT-RF: its input is every 4th slice" in section(made, "Methods")
    data = section(made, "Data")
    assert f"| bundle by-hand 0.0.1 | {open_bundle(bundle).sha256[:16]} |" in data
    assert {"pairs.csv", "s4-R, low field", "s4, brain", "s5, mask"} <= set(re.findall(r"^\| ([^|]+) \|", data, re.M))
    assert str(made.parent) not in (made / "benchmark.md").read_text(encoding="utf-8")


class Loads(html.parser.HTMLParser):
    """Collects what a page would fetch, and its tables' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.rows = 0
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [str(values[name]) for name in ("src", "href", "srcset", "data") if name in values]
        self.rows += tag == "tr"
        assert tag not in ("script", "link", "iframe", "object")
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])


def test_the_page_is_self_contained_and_holds_what_the_markdown_holds(made: Path) -> None:
    page, parser = (made / "benchmark.html").read_text(encoding="utf-8"), Loads()
    parser.feed(page)
    assert "default-src 'none'" in parser.policy
    assert len(parser.found) == 2
    assert all(source.startswith("data:image/png;base64,") for source in parser.found)
    assert "url(" not in page
    text = (made / "benchmark.md").read_text(encoding="utf-8")
    assert parser.rows == len(re.findall(r"^\| (?!---)", text, re.M))
    for name in ("ind.png", "ood.png"):
        assert f"]({name})" in text


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>&'
    table = Table(head=(hostile,), rows=(((hostile, False), (hostile, True)),))
    section = Section(heading=hostile, paragraphs=(hostile,), table=table, picture=b"png")
    write_article(tmp_path / "page.html", title=hostile, sections=[section])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    Loads().feed(page)
    assert page.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;") == 10


def test_the_figure_shows_images_and_their_errors(made: Path, pairs: Path, bundle: Path) -> None:
    picture = np.asarray(Image.open(made / "ind.png"))
    assert picture[LINE:].max() > 200
    assert picture.shape[1] == 5 * WIDTH + 4 * 6, "reference and four methods"


@pytest.mark.parametrize("air", [0, 40])
def test_errors_are_coloured_on_one_scale(air: int) -> None:
    """A method that is off by half the largest error gives the middle of the colour table; air is cut off."""
    reference = np.pad(np.full((20 - 2 * min(air, MARGIN), 30 - 2 * min(air, MARGIN)), 0.5, np.float32), air)
    method: Any = type("Off", (), {"key": "off", "title": "off"})()
    made_up: Any = type("Sets", (), {})()
    made_up.scans = [type("Scan", (), {"picture": reference})()]
    made_up.results = {"off": [type("Result", (), {"picture": reference + np.float32(LARGEST_ERROR / 2)})()]}
    picture = np.asarray(Image.open(io.BytesIO(draw_figure(made_up, [method]))))
    height = round(WIDTH * 20 / 30)
    error = picture[LINE + height + 6 + 20 : -20, WIDTH + 6 + 20 : -20]
    assert np.abs(error.astype(int) - colour_table("error")[128].astype(int)).max() <= 4
    assert picture.shape[0] == LINE + 2 * height + 6
    edge = 10 + (MARGIN * WIDTH // 30 if air else 0)
    shown = picture[LINE + edge : LINE + height - edge, edge : WIDTH - edge]
    assert np.abs(shown.astype(int) - 128).max() <= 1


def test_calibration_is_that_of_the_contracts_scale(made: Path, bundle: Path) -> None:
    """Coverage, bins and rank correlation again, from the voxels that were kept."""
    lines = lines_of(made / "calibration.csv")
    for name, pairs, steps, scale in (("InD", ("s4-R", "s4-S"), 5, 3.5), ("OOD", ("s5-A",), 2, 1.0)):
        folder = made / "results" / name / f"uncertainty-{steps}"
        assert {path.stem for path in folder.iterdir()} == set(pairs)
        error, std = np.concatenate([np.load(folder / f"{pair}.npz")["voxels"] for pair in pairs], axis=1)
        own = [x for x in lines if (x["set"], x["steps"]) == (name, str(steps))]
        assert {(x["samples"], float(x["scale"])) for x in own} == {(str(SAMPLES), scale)}
        covered = {float(x["predicted"]): float(x["found"]) for x in own if x["measure"] == "coverage"}
        assert covered == {
            level: pytest.approx(np.mean(np.abs(error) / (scale * std) <= z), abs=2e-3)
            for level, z in ((0.5, 0.67449), (0.8, 1.28155), (0.9, 1.64485), (0.95, 1.95996))
        }
        bins = np.array([(x["predicted"], x["found"]) for x in own if x["measure"] == "deviation"], float)
        assert (np.diff(bins[:, 0]) > 0).all()
        means = np.sqrt(np.mean([(scale * std).astype(float) ** 2, error.astype(float) ** 2], axis=1))
        np.testing.assert_allclose(np.sqrt((bins**2).mean(axis=0)), means, rtol=0.01)
        shares = {x["measure"]: float(x["found"]) for x in own if x["measure"].startswith("coverage of ")}
        assert set(shares) == {f"coverage of {pair}" for pair in pairs}
        for pair in pairs:
            apart, bare = np.load(folder / f"{pair}.npz")["voxels"]
            share = shares[f"coverage of {pair}"]
            assert share == pytest.approx(np.mean(np.abs(apart) / (scale * bare) <= 1.64485), abs=2e-3)
            assert f"{pair} {share:.0%}" in section(made, f"{name}: calibration")
        (rank,) = [float(x["found"]) for x in own if x["measure"] == "rank correlation"]
        assert rank == pytest.approx(stats.spearmanr(np.abs(error), std).statistic, abs=1e-4)
        row = rf"\| {steps} \| {'3.50' if scale > 1 else '1 .bare.'} \| {covered[0.5]:.1%} \|"
        assert re.search(row, section(made, f"{name}: calibration"))
        assert "by-hand has no calibration for 2 steps" in section(made, f"{name}: calibration")
        assert f"| {bins[-1, 0]:.4f} | {bins[-1, 1]:.4f} |" in section(
            made, f"{name}: error against predicted deviation"
        )


class CountedMethods:
    """Counts the pairs that are really enhanced and scored; stops at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stop: int | None = None) -> None:
        self.count = 0
        original = results.score

        def score(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == stop:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        monkeypatch.setattr(results, "score", score)


def test_a_benchmark_that_was_stopped_gives_the_same_tables(
    made: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        CountedMethods(patch, stop=6)
        assert run([*arguments, "--out", str(out)]) == 130
    assert not (out / "benchmark.md").exists()
    assert run([*arguments, "--out", str(out)]) == 2, "not without --resume"
    counted = CountedMethods(monkeypatch)
    assert run([*arguments, "--out", str(out), "--resume"]) == 0
    assert counted.count == 12 - 5, "four methods on three scans, of which five were kept"
    for name in ("scores.csv", "differences.csv", "calibration.csv", "ind.png", "ood.png"):
        assert (out / name).read_bytes() == (made / name).read_bytes(), name
    monkeypatch.setattr(calibration, "crossings", None)
    assert run([*arguments, "--out", str(out), "--resume"]) == 0
    assert counted.count == 12 - 5, "nothing is computed twice"


def test_results_of_another_method_or_another_scan_are_not_taken_over(
    made: Path, arguments: list[str], make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(made, tmp_path / "out")
    counted = CountedMethods(monkeypatch)
    assert run([*arguments, "--out", str(out), "--resume", "--bundle", str(make_bundle("y"))]) == 0
    assert counted.count == 2 * 3, "two numbers of steps of the other bundle"
    assert run([*arguments, "--out", str(out), "--resume", "--ind-slices", "6"]) == 0
    assert counted.count == 2 * 3 + 2 * 3 + 2 * 2, "the first bundle again; the two methods left on two scans"
    path = next((out / "results" / "OOD" / "interpolation").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    assert run([*arguments, "--out", str(out), "--resume", "--ind-slices", "6"]) == 3


def test_numbers_that_other_code_gave_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def noting(name: str, result: object) -> Any:
        def measure(*_: object, **__: object) -> object:
            measured.append(name)
            return result

        return measure

    opened = SimpleNamespace(x_1=None, thickness=3.0, check=lambda *_, **__: SimpleNamespace(largest=7.0))
    checked = Checked(set_name="InD", pair="p", clean=7.0, altered=np.zeros((1, 1, 1)), near=np.ones((1, 1, 1), bool))
    line = np.full((1, 1, 4), 0.5, np.float32)
    crossed = Crossings(indices=(np.arange(1), np.arange(1)), mean=line, std=line, truth=line)
    monkeypatch.setattr(unaltered, "EnhancedScan", SimpleNamespace(of=noting("unaltered", opened)))
    monkeypatch.setattr(consistency, "_check", noting("consistency", checked))
    monkeypatch.setattr(calibration, "crossings", noting("uncertainty", crossed))
    scan: Any = SimpleNamespace(identity="s", pair=SimpleNamespace(pair="p"))
    bundle: Any = SimpleNamespace(sha256="b", contract=SimpleNamespace(processing=None, source_std=1.0))
    enhancer: Any = SimpleNamespace(bundle=bundle)
    unused: Any = None

    def ask() -> None:
        unaltered._kept_or_made(tmp_path / "a.npz", tmp_path, enhancer, scan)
        consistency._kept_or_made(tmp_path / "b.npz", tmp_path, enhancer, "InD", scan)
        calibration._kept_or_made(tmp_path / "c.npz", unused, bundle, scan, unused, steps=2, samples=3)

    every = ["unaltered", "consistency", "uncertainty"]
    ask()
    ask()
    assert measured == every, "the same code: taken over"
    for module in (unaltered, consistency, calibration):
        monkeypatch.setattr(module, "_CODE", "of another version")
    ask()
    assert measured == every * 2


@pytest.mark.parametrize("module", [unaltered, consistency, calibration])
def test_the_code_of_a_number_is_all_that_it_stands_on(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = calibration.CODE if module is calibration else (module.__name__, *enhanced.CODE)
    assert code_hash(*named) == module._CODE
    first = "lfmri_trainer.calibration" if module is calibration else "lfmri_runtime.consistency"
    own = {"noise", "forward", "contrast"} if module is not calibration else {"sampler", "slices"}
    assert {module.__name__, first, *(f"lfmri_runtime.{name}" for name in own)} <= set(named)
    read = Path.read_bytes
    for name in named:
        file = import_module(name).__file__
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda path, file=file: read(path) + b"#" * (str(path) == file))
            assert code_hash(*named) != module._CODE, name


def test_what_the_check_imports_is_among_its_code() -> None:
    waiting, seen = ["lfmri_runtime.consistency"], {"lfmri_runtime.errors"}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        tree = ast.parse(Path(str(import_module(name).__file__)).read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        waiting += {module for module in modules if module.startswith("lfmri_")} - seen
    assert seen - {"lfmri_runtime.errors"} <= set(enhanced.CODE)


def test_a_fitted_baseline_is_used_again_but_not_for_other_settings(
    made: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [word for word in arguments if word not in FIT]
    out = ["--out", str(tmp_path / "out"), "--fitted", str(made / "fitted")]
    assert run([*plain, *out, "--fit", "iqt-rf:trees=3"]) == 2
    assert "was fitted with other settings" in capsys.readouterr().err
    assert run([*plain, *out]) == 0
    assert not (tmp_path / "out" / "fitted").exists()
    assert (tmp_path / "out" / "scores.csv").read_bytes() == (made / "scores.csv").read_bytes()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--methods", "unet"], 2, "no method named unet"),
        (["--fit", "unet:steps=3"], 2, "no method named unet"),
        (["--fit", "iqt-rf:tree=3"], 2, "no setting 'tree'"),
        (["--fit", "iqt-rf"], 2, "expected METHOD:KEY=VALUE"),
        (["--steps", "1,x"], 2, "expected different numbers"),
        (["--steps", "0"], 2, "expected different numbers"),
        (["--steps", "2,2"], 2, "expected different numbers"),
        (["--uncertainty-steps", "1,2"], 2, "expected different numbers from 2"),
        (["--samples", "1"], 2, "expected at least 2 draws"),
        (["--quick"], 2, "either --pairs DIR"),
        (["--ind", "other", "--ood", "another"], 3, "has the preset other or another"),
        (["--pairs", "nowhere"], 3, "nowhere/pairs.csv not found"),
        (["--bundle", "nowhere"], 4, "nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    changes: list[str], code: int, message: str, arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert run([*arguments, "--out", str(tmp_path / "out"), *changes]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.rglob("benchmark.*"))


def test_a_subject_that_a_method_was_trained_on_is_refused(
    arguments: list[str], make_bundle: MakeBundle, pairs: Path, tmp_path: Path, capsys: Any
) -> None:
    seen = make_bundle(training={"training_subjects": ["s1", "s5_copy-2"]})
    assert run([*arguments, "--out", str(tmp_path / "a"), "--bundle", str(seen)]) == 3
    assert "by-hand learned from s5" in capsys.readouterr().err
    judged = Calibration(steps=2, samples=8, scale=1.0, subjects=("s4_ses-1",), scans=1, voxels=100)
    tuned = make_bundle(uncertainty=(judged,))
    assert run([*arguments, "--out", str(tmp_path / "a"), "--bundle", str(tuned)]) == 3
    assert "the uncertainty of by-hand learned from s4" in capsys.readouterr().err
    known = ["tiny", "tiny-ood"]
    for training in ({"presets": known}, {"presets": ["tiny"], "started_from": {"presets": known}}):
        noisy = make_bundle(training=training)
        assert run([*arguments, "--out", str(tmp_path / "a"), "--bundle", str(noisy)]) == 3
        said = capsys.readouterr().err
        assert "by-hand learned from the preset tiny-ood; expected one that is new to it as OOD" in said
    rows = read_pairs(pairs)
    folder = tmp_path / "pairs"
    shutil.copytree(pairs, folder)
    write_pairs(folder, [replace(row, split="train") if row.pair == "s4-S" else row for row in rows])
    assert run([*arguments, "--out", str(tmp_path / "b"), "--pairs", str(folder)]) == 3
    assert "iqt-rf learned from s4" in capsys.readouterr().err


def test_a_baseline_that_started_from_what_knew_the_ood_preset_is_refused(
    arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    network = build_network("iqt-cfm-edge")
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    np.savez(run_folder / "weights.npz", allow_pickle=False, **weights)
    summary = {"steps_in_all": 1, "training_subjects": ["s1"], "presets": ["tiny-ood"]}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    tiny_settings(tmp_path).save(run_folder)
    fit = f"regression:initial={run_folder},preset=iqt-cfm-edge,steps=1,batch=1,crop=32,precision=32-true"
    changed = ["--methods", "regression,flow", "--fit", fit, "--out", str(tmp_path / "out")]
    assert run([word for word in arguments if word not in FIT] + changed) == 3
    assert not list((tmp_path / "out").rglob("*.npz")), "refused before anything is fitted"
    assert "what regression starts from learned from the preset tiny-ood" in capsys.readouterr().err


def test_a_fitted_baseline_of_another_scale_is_refused(
    made: Path, arguments: list[str], make_bundle: MakeBundle, tmp_path: Path, capsys: Any
) -> None:
    other = replace(contract().processing, low_field=replace(contract().processing.low_field, target=0.5))
    options = ["--fitted", str(made / "fitted"), "--bundle", str(make_bundle(processing=other))]
    assert run([*arguments, "--out", str(tmp_path / "out"), *options]) == 3
    assert "another scale" in capsys.readouterr().err


def test_what_limits_a_score_is_told_for_each_pair(pairs: Path) -> None:
    command = [
        sys.executable,
        ROOT / "benchmarks" / "limits.py",
        "--pairs",
        pairs,
        "--presets",
        "tiny",
        "--slices",
        "4",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["s4-R", "s4-S", "mean of tiny"]
    values = np.array([[cell.split(" / ") for cell in row[1:]] for row in rows], dtype=float)
    np.testing.assert_allclose(values[-1], values[:-1].mean(axis=0), atol=0.011)
    (scan, line, best, resolution), ssim, lpips = values[-1].T
    assert scan < line + 0.1, "it fits all slices at once, the score is a mean over them"
    assert line < best + 0.5, "a map of quantiles is a line too, but for its steps"
    assert resolution > scan, "neither noise nor another contrast"
    assert ssim[3] > ssim[0]
    assert lpips[3] < lpips[0]


def beside(*words: str) -> subprocess.CompletedProcess[str]:
    """The script as a command, in this process: torch is here already."""
    said, code, error = io.StringIO(), 0, ""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", ["beside.py", *words])
        try:
            runpy.run_path(str(ROOT / "benchmarks" / "beside.py"), run_name="__main__")
        except SystemExit as leaving:
            code, error = 1, f"{leaving.code}\n"
    return subprocess.CompletedProcess(words, code, said.getvalue(), error)


def test_models_that_were_benchmarked_apart_stand_side_by_side(made: Path, tmp_path: Path) -> None:
    better = tmp_path / "better" / "scores.csv"
    better.parent.mkdir()
    head, *lines = (made / "scores.csv").read_text().splitlines()
    column = head.split(",").index("psnr_db")
    for name, intervals in (("s4_copy-{}", False), ("p{}", True)):
        several = [re.sub(",s4-(.)", rf",{name.format(n)}_tiny-\\1_000", line) for n in range(5) for line in lines]
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.csv").write_text("\n".join([head, *several]) + "\n")
        shown = beside(f"a={tmp_path / name}", "--against", "iqt-rf").stdout
        assert ("[" in shown) == intervals, "copies are no people"
    moved = [line.split(",") for line in lines]
    for values in moved:
        values[column] = repr(float(values[column]) + 2 * values[1].startswith("flow"))
    better.write_text("\n".join([head, *map(",".join, moved)]) + "\n")
    done = beside(f"b={better.parent}", f"a={made}", "--against", "iqt-rf")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| InD |")]
    cells = {title: values for _, title, *values in rows}
    assert list(cells).count("interpolation") == 1, "both have the same"
    assert cells["b - a, flow-5"][:2] == ["+2.00", "+0.000"]
    (mean,) = (
        float(line["mean"])
        for line in lines_of(made / "differences.csv")
        if [line[k] for k in ("set", "method", "minus", "score")] == ["InD", "flow-1", "iqt-rf", "psnr_db"]
    )
    assert cells["a, flow-1 - iqt-rf"][0] == f"{mean:+.2f}"
    assert float(cells["b, flow-1"][0]) == pytest.approx(float(cells["a, flow-1"][0]) + 2, abs=0.011)


def test_models_on_other_slices_are_not_put_side_by_side(made: Path, tmp_path: Path) -> None:
    lines = (made / "scores.csv").read_text().splitlines()
    (tmp_path / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    done = beside(f"a={made}", f"b={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("beside.py: a - b, flow-5: scored on other slices; expected")
    assert "scores.csv not found; expected NAME=DIR" in beside(f"a={tmp_path / 'none'}").stderr


def test_of_paths_only_the_last_part_is_told() -> None:
    words = ["benchmark", "--pairs", "/home/someone/a b", "--bundle=../x/y", "--steps", "1,2"]
    assert command_line(words) == "lfmri benchmark --pairs 'a b' --bundle=y --steps 1,2"
    fit = "regression:initial=/home/someone/first,steps=20"
    assert command_line(["benchmark", "--fit", fit]) == "lfmri benchmark --fit regression:initial=first,steps=20"


def test_quick_needs_no_pairs_and_the_shipped_model_looks_better_than_interpolation(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    assert run(["benchmark", "--quick", "--out", str(out)]) == 0
    lines = lines_of(out / "scores.csv")
    methods = ("interpolation", "matched", "flow-1", "flow-2")
    assert [line["method"] for line in lines] == [method for method in methods for _ in range(SLICES)]
    for score, sign in (("psnr_db", 1), ("ssim", 1), ("lpips", -1)):
        mean = {m: np.mean([float(x[score]) for x in lines if x["method"] == m]) for m in methods}
        assert sign * mean["interpolation"] < sign * mean["flow-1"]
    compared = [(x["method"], x["minus"]) for x in lines_of(out / "differences.csv") if x["score"] == "psnr_db"]
    flows = [(flow, other) for other in ("interpolation", "matched") for flow in ("flow-1", "flow-2")]
    assert compared == [("matched", "interpolation"), *flows]
    headings = re.findall(r"^## (.*)$", (out / "benchmark.md").read_text(encoding="utf-8"), re.M)
    sections = ("scores", "paired differences", "reconstructions and absolute errors")
    assert headings == ["How it was made", *(f"InD: {name}" for name in sections), "Methods", "Data"]
    assert {path.name for path in out.iterdir()} == (FILES - {"ood.png", "calibration.csv", "consistency.csv"}) | {
        "results",
        "sample",
    }
