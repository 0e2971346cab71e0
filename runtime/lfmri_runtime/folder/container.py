"""One run inside a container of mercure or of MONAI Deploy: the input, which may be read-only, is left as it is.

mercure: docs/modules.rst of mercure-imaging/mercure; settings stand in task.json under process, settings. MONAI
Deploy: the HOLOSCAN variables of a MONAI application package.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfmri_runtime.bundle import CONTRACT
from lfmri_runtime.console.station import EnhanceOptions
from lfmri_runtime.decoding import Mismatch, decode
from lfmri_runtime.errors import BundleRefused, InputRefused, TryAgainLater, UsageError
from lfmri_runtime.files import write_json
from lfmri_runtime.folder.items import files_below, is_whole_name
from lfmri_runtime.folder.layouts import is_image, is_taken
from lfmri_runtime.folder.work import Result, Worker, document_of

#: Input and output folder, by whoever starts the container; mercure sets both pairs.
FOLDERS = (("MERCURE_IN_DIR", "MERCURE_OUT_DIR"), ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH"))
MODEL = "HOLOSCAN_MODEL_PATH"
TASK = "task.json"
RESULT = "result.json"
DICOM = "dicom"
#: A task names a study's tags; more than this is none.
MAX_TASK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What a rule of mercure may set; null takes the configured value."""

    steps: int | None = None
    samples: int | None = None
    seed: int | None = None


def folders_of(environment: Mapping[str, str]) -> tuple[Path, Path]:
    """Input and output folder.

    Raises:
        UsageError: no pair of variables is set.
    """
    for names in FOLDERS:
        source, target = (environment.get(name, "") for name in names)
        if source and target:
            return Path(source), Path(target)
    pairs = " or ".join(f"{source} and {target}" for source, target in FOLDERS)
    raise UsageError(f"no folders are given; expected --in and --out, or with --once the variables {pairs}")


def bundle_of(environment: Mapping[str, str]) -> str:
    """The bundle in HOLOSCAN_MODEL_PATH, or in the one folder in it; empty where it is unset, missing or empty.

    Raises:
        BundleRefused: there is something else in it.
    """
    folder = Path(environment.get(MODEL, ""))
    if not environment.get(MODEL) or not folder.is_dir() or not any(folder.iterdir()):
        return ""
    found = [path.parent for path in (*folder.glob(CONTRACT), *folder.glob(f"*/{CONTRACT}"))]
    if len(found) == 1:
        return str(found[0])
    raise BundleRefused(f"{folder} ({MODEL}) holds {len(found)} bundles; expected one that `lfmri export` made")


def task_options(folder: Path, options: EnhanceOptions) -> EnhanceOptions:
    """Options with what mercure's task.json sets; unchanged where there is none.

    Raises:
        InputRefused: it is not JSON, too large, or sets what is not known.
    """
    path = folder / TASK
    if not path.exists():
        return options
    try:
        if path.stat().st_size > MAX_TASK_BYTES:
            raise Mismatch(f"over {MAX_TASK_BYTES} bytes")
        document: Any = json.loads(path.read_bytes())
        process = document.get("process") if isinstance(document, dict) else None
        given = process.get("settings") if isinstance(process, dict) else None
        defaults = dataclasses.asdict(TaskSettings())
        settings = decode(TaskSettings, {**defaults, **given} if isinstance(given, dict) else defaults, "settings")
    except (OSError, ValueError, RecursionError) as error:
        raise InputRefused(
            f"{TASK}: {error}; expected mercure's task with steps, samples or seed in its settings"
        ) from None
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    return dataclasses.replace(options, **chosen)


def run(worker: Worker, folder: Path) -> list[Result]:
    """Enhance all that lies in a folder and its folders; result.json comes last.

    Args:
        worker: its layout's folder is the output folder.
        folder: only read.

    Raises:
        UsageError: the output folder holds something.
        InputRefused: no scan is there, or the folder cannot be read.
        TryAgainLater: the machine could not finish now.
    """
    output = worker.layout.folder
    _check_empty(output)
    worker.layout.prepare()
    try:
        names = files_below(folder)
    except OSError as error:
        raise InputRefused(f"{folder}: {error.strerror}; expected a folder with scans") from None
    images = [path for path in names if is_image(path.name)]
    others = [path for path in names if not is_image(path.name) and path.suffix not in (".json", ".tags")]
    results: list[Result] = []
    for image in images:
        if is_taken(worker.layout, image.name):
            results.append(worker.fail("", "a second scan of one name; expected a name of its own for each"))
        else:
            results.extend(worker.work(image, image.name))
    if others:
        results.extend(worker.work(folder, DICOM))
        _flatten(worker.layout.folder / DICOM)
    if not results:
        raise InputRefused(f"{folder} holds no scan; expected NIfTI, MGH or DICOM files")
    write_json(output / RESULT, document_of(results, worker.station.enhancer.bundle.sha256))
    return results


def _check_empty(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        held = [path for path in output.iterdir() if is_whole_name(path.name)]
    except OSError as error:
        raise TryAgainLater(f"{output}: {error.strerror}; expected a folder that can be written") from None
    if held:
        raise UsageError(f"{output} holds {len(held)} files or folders; expected an empty output folder")


def _flatten(folder: Path) -> None:
    """Move derived series up, under the names that mercure gives: SERIES#INSTANCE.dcm, none of them in a folder."""
    for path in sorted(folder.glob("**/*.dcm")):
        from lfmri_runtime.dicom.series import open_image

        series = open_image(path, pixels=False).SeriesInstanceUID
        path.rename(folder.parent / f"{series}#{path.name}")
    for path in sorted(folder.glob("*.json")):
        path.rename(folder.parent / path.name)
    shutil.rmtree(folder, ignore_errors=True)
