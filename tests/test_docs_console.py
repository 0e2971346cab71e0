"""docs/console.md as a console engineer types it: each chapter's lines in one shell, in a network of their own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .peers import require_peer

ROOT = Path(__file__).parents[1]
CHAPTERS = re.split(r"^## ", (ROOT / "docs/console.md").read_text(), flags=re.MULTILINE)[1:]
#: A chapter's shell, with loopback alone: its ports are free, and what listens there is reached by nobody else.
SHELL = ["unshare", "--net", "bash", "-c", 'ip link set lo up; set -emu; eval "$1"', "shell"]


def lines_of(chapter: str) -> str:
    return "".join(re.findall(r"^```sh\n(.*?)^```", chapter, flags=re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def engineer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan and the clone's examples."""
    folder = tmp_path_factory.mktemp("engineer")
    (folder / "docs").symlink_to(ROOT / "docs")
    data = np.random.default_rng(0).gamma(2, 100, (24, 26, 6)).astype(np.int16)
    nib.Nifti1Image(data, np.diag([1.6, 1.6, 5.0, 1.0])).to_filename(folder / "scan.nii.gz")
    return folder


@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if lines_of(c)], ids=lambda chapter: chapter.split("\n")[0])
def test_a_chapter_runs_as_it_stands(engineer: Path, chapter: str) -> None:
    for program in ("unshare", "ip", "curl"):
        require_peer(program, shutil.which(program) is not None)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*SHELL, lines_of(chapter)],
        cwd=engineer,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{lines_of(chapter)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_way_is_a_chapter_with_commands() -> None:
    titles = {chapter.split("\n")[0] for chapter in CHAPTERS if lines_of(chapter)}
    assert {"A folder", "MRD", "DICOM", "As a service"} <= titles
