"""The commands of README and docs, typed as they stand, in the order in which a reader meets them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
import pytest

from lfmri.cli import cli
from lfmri_runtime.bundle import open_bundle
from lfmri_trainer.recipe import read_recipe

from .onion import onion

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(nilearn.__file__).parent / "datasets" / "data"
#: The centre of the template: enough anatomy for every command, little enough for a test.
BOX = (slice(58, 138), slice(80, 160), slice(66, 114))
#: A smaller piece that holds brain and background.
EDGE = (slice(16, 48), slice(86, 118), slice(66, 99))
PAGES = ("docs/researchers.md", "docs/engineers.md", "README.md", "docs/users.md", "docs/devices.md")
#: A reader trains for hours; the test only needs the run to exist.
SHORTENED = {"--max-steps 20000": "--max-steps 2 --crop 32 --precision 32-true"}


def commands(page: str) -> list[str]:
    """The lines of a page's sh blocks; make's targets have tests of their own (test_fresh.py, and CI itself)."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("make ")]


def shortened(command: str) -> str:
    for long, short in SHORTENED.items():
        command = command.replace(long, short)
    return command


def run(command: str | list[str], folder: Path) -> None:
    words = shlex.split(command) if isinstance(command, str) else command
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: subjects, and a scan with its reference and mask."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("one", "two"):
        subject = folder / "subjects" / name
        subject.mkdir(parents=True)
        for kind, target in (("t1", "T1w_brain"), ("gm", "GM"), ("wm", "WM")):
            image = nib.Nifti1Image.from_filename(TEMPLATE / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
            image.slicer[BOX].to_filename(subject / f"{target}.nii.gz")
    (folder / "labels").mkdir()
    nib.Nifti1Image(onion(), np.eye(4)).to_filename(folder / "labels" / "three.nii.gz")
    image = nib.Nifti1Image.from_filename(TEMPLATE / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz").slicer[EDGE]
    data = np.asarray(image.dataobj, dtype=np.float32)
    thick = image.affine @ np.diag([1.0, 1, 4, 1])
    for name, voxels, affine in (
        ("scan", data[..., ::4], thick),
        ("second", data[::-1, :, ::4], thick),
        ("reference", data, image.affine),
        ("mask", (data > 20).astype(np.float32), image.affine),
    ):
        nib.Nifti1Image(voxels.astype(np.int16), affine).to_filename(folder / f"{name}.nii.gz")
    text = (ROOT / "docs/researchers.md").read_text()
    (recipe,) = re.findall(r"^```json\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (folder / "recipe.json").write_text(recipe)
    return folder


def test_every_command_in_the_pages_runs_as_it_stands(reader: Path) -> None:
    for page in PAGES:
        for command in commands(page):
            run(shortened(command), reader)
    for left in (
        "synthesised/three/T1w.nii.gz",
        "pairs/pairs.csv",
        "set/pairs/pairs.csv",
        "varied/one_copy-1/variation.json",
        "start/weights.npz",
        "finer/weights.npz",
        "again/weights.npz",
        "bundle/contract.json",
        "report.html",
        "scores.csv",
        "std.nii.gz",
        "verify/verify.md",
        "bench.json",
        "chosen.json",
    ):
        assert (reader / left).stat().st_size > 0, left
    assert {p.name for p in (reader / "enhanced").glob("*.nii.gz")} == {"scan.nii.gz", "second.nii.gz"}


def test_the_python_of_the_engineers_page_runs(reader: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/engineers.md").read_text(), re.MULTILINE | re.DOTALL)
    (reader / "enhanced.nii.gz").unlink(missing_ok=True)
    run([sys.executable, "-c", block], reader)
    assert (reader / "enhanced.nii.gz").stat().st_size > 0


def test_the_recipe_of_the_built_in_model_is_one_and_says_what_its_contract_says(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs/training-set.json", tmp_path)
    for name in ("labels", "real", "adults", "unseen", "others"):
        (tmp_path / name).mkdir()
    recipe = read_recipe(tmp_path / "training-set.json")
    learned = [one for one in recipe.simulate if not one.test_subjects]
    training = open_bundle().contract.training
    assert {one.preset for one in learned} == set(training["presets"])
    assert {name for one in learned for name in one.validation_subjects} == set(training["validation_subjects"])


def test_every_subcommand_has_help_and_stands_in_the_pages() -> None:
    text = "".join((ROOT / page).read_text() for page in (*PAGES, "docs/console.md"))
    for name, command in cli.commands.items():
        assert command.help, name
        assert re.search(rf"(lfmri|make) {name}\b", text), name


def anchors(page: Path) -> set[str]:
    """What leads to a page's headings: GitHub drops their punctuation and puts dashes for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_link_only_to_what_is_there() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
            if not target.startswith("https://"):
                page = path.parent / target if target else path
                assert page.exists(), f"{path}: {target}"
                assert not anchor or anchor in anchors(page), f"{path}: {target}#{anchor}"
