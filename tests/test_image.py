"""deploy/Dockerfile, as far as it can be checked without Docker: its instructions, its build, its command offline."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .bundles import MakeBundle
from .peers import require_peer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """(instruction, argument) in order, with continued lines joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(name, argument) for name, _, argument in (line.partition(" ") for line in lines if line.strip())]


def arguments(name: str) -> list[str]:
    return [argument for found, argument in instructions() if found == name]


def test_the_image_is_slim_without_rights_and_fetches_only_packages() -> None:
    kinds = [name for name, _ in instructions()]
    assert set(kinds) == {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD", "EXPOSE"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    *images, openrecon, last = arguments("FROM")
    assert (openrecon, last) == ("console AS openrecon", "console")
    for image in images:
        name = re.fullmatch(r"python:(\d+)\.(\d+)-slim AS (?:build|console)", image)
        assert name is not None, image
        assert (int(name[1]), int(name[2])) >= lowest
    assert kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert arguments("USER") == ["10001"]
    assert not [line for line in arguments("RUN") if re.search(r"curl|wget|apt|https?:|git ", line)]
    (entry,), (command, served) = arguments("ENTRYPOINT"), arguments("CMD")
    assert json.loads(entry)[0] in project["scripts"]
    assert json.loads(command) == ["doctor"]
    assert json.loads(served) == ["serve", "--mrd", "0.0.0.0:9002", "--beyond-loopback"]
    (install,) = [line for line in arguments("RUN") if "pip install" in line]
    (extras,) = re.findall(r'^pip install --no-cache-dir "\$\(ls /wheels/lfmri-\*\.whl\)\[([a-z,]+)\]" &&', install)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert not {"train", "export"} & set(extras.split(","))
    assert "mrd" in extras.split(",")
    assert "ORT_DISABLE_TELEMETRY=1" in arguments("ENV")[0]


def test_what_the_image_copies_is_enough_to_build_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for argument in arguments("COPY"):
        *names, target = argument.split()
        if names[0].startswith("--from"):
            continue
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source / target)
    (line,) = [line for line in arguments("RUN") if line.startswith("pip wheel")]
    subprocess.run([sys.executable, "-m", *line.replace("/wheels", str(tmp_path)).split()], cwd=source, check=True)
    (wheel,) = tmp_path.glob("lfmri-*.whl")
    assert wheel.stat().st_size > 10e6, "without step.onnx it has 8 MB"


def test_the_consoles_command_runs_without_a_network(
    make_bundle: MakeBundle, make_nifti: Callable[..., Path], tmp_path: Path
) -> None:
    alone = ["unshare", "--map-root-user", "--net"]
    works = (
        shutil.which("unshare") and subprocess.run([*alone, "true"], check=False, capture_output=True).returncode == 0
    )
    require_peer("unshare (of util-linux, with user namespaces)", bool(works))
    scan = make_nifti()
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": "/nowhere",
    }
    for words in (["enhance", scan.name, "-o", "out.nii.gz", "--bundle", str(make_bundle())], ["doctor"]):
        done = subprocess.run(
            [*alone, sys.executable, "-m", "lfmri", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.nii.gz").stat().st_size > 0
