"""Scores of one method on one pair, kept as they come, so that a benchmark that was stopped goes on.

OUT/results/<set>/<method>/<pair>.npz    scores, indices, seconds, the middle slice; plain arrays, and what made them
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused
from lfmri_runtime.evaluation import COLUMNS, evaluate
from lfmri_runtime.lpips import Lpips
from lfmri_trainer.baselines.fitted import load_arrays, save_arrays
from lfmri_trainer.baselines.method import Float32Array, Method
from lfmri_trainer.benchmark.cases import Case

KEYS = tuple(column.key for column in COLUMNS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A method's scores on the slices of one pair.

    Attributes:
        indices: of the slices.
        scores: by column key, a value a slice.
        seconds: a slice.
        picture: x_1_hat of the middle slice, (rows, columns).
        made: commit and machine; empty in a result that was made before they were kept.
    """

    indices: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.float64]]
    seconds: float
    picture: Float32Array
    made: str


def result_of(method: Method, case: Case, path: Path, *, limit: float, lpips: Lpips, made: str) -> Result:
    """Take what an earlier call left at `path` for the same method and slices; or enhance, score and leave it there.

    Args:
        method: ready to enhance.
        case: slices and their reference.
        path: of the result.
        limit: every method's images are clipped to [0, limit], the range of the standard scale.
        lpips: the perceptual distance.
        made: commit and machine, kept with the result.
    """
    about = {"method": method.identity, "case": case.identity}
    found = kept(path, about, "indices", "scores", "seconds", "picture")
    if found is not None and len(found[0][1]) == len(KEYS):  # else of a version with other scores
        (indices, scores, seconds, picture), said = found
        return Result(
            indices=indices,
            scores=dict(zip(KEYS, scores, strict=True)),
            seconds=float(seconds),
            picture=picture,
            made=str(said.get("made", "")),
        )
    started = time.perf_counter()
    images = method.enhance(case.request)
    spent = (time.perf_counter() - started) / method.slices_computed(case.request)
    result = score(images, case, seconds=spent, limit=limit, lpips=lpips, made=made)
    stacked = np.stack([result.scores[key] for key in KEYS])
    arrays = {"indices": result.indices, "scores": stacked, "seconds": np.array(spent), "picture": result.picture}
    keep(path, arrays, {**about, "made": made})
    return result


def score(images: Float32Array, case: Case, *, seconds: float, limit: float, lpips: Lpips, made: str = "") -> Result:
    """Score a method's slices, (slices, rows, columns).

    Raises:
        InputRefused: other shapes than the reference's, or values that are not finite.
    """
    clipped = np.clip(images, 0, np.float32(limit))
    evaluation = evaluate(clipped, case.reference, axis=0, mask=case.mask, lpips=lpips)
    return Result(
        indices=np.array(case.request.indices, dtype=np.int64),
        scores={key: np.array([row.scores[key] for row in evaluation.rows]) for key in KEYS},
        seconds=seconds,
        picture=clipped[len(clipped) // 2],
        made=made,
    )


def kept(path: Path, about: Mapping[str, str], *names: str) -> tuple[list[NDArray[Any]], Mapping[str, Any]] | None:
    """What an earlier call left at `path` about the same things: the named arrays, and all that it says about them.

    Returns:
        None where there is nothing, or something about other things.

    Raises:
        InputRefused: a file that cannot be read, or without these arrays.
    """
    if not path.is_file():
        return None
    try:
        arrays, found = load_arrays(path)
        values = [arrays[name] for name in names]
        same = {name: found.get(name) for name in about} == about
    except (AttributeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputRefused(f"{path}: {reason}; expected a result of this benchmark: remove it and resume") from None
    return (values, found) if same else None


def code_hash(*modules: str) -> str:
    """SHA-256 of the source of modules, by name: what other code made is not what this one would make.

    Take it on import: a file may change while a long benchmark still runs what was read before.
    """
    sources = [Path(str(import_module(name).__file__)).read_bytes() for name in modules]
    return hashlib.sha256("\n".join(hashlib.sha256(source).hexdigest() for source in sources).encode()).hexdigest()


def keep(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]) -> None:
    """Leave arrays at `path` for `kept`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, arrays, about)
