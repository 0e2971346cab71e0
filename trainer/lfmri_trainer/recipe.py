"""A training set from one file: subjects from label maps, varied copies of subjects, and the pairs of all of them.

A recipe is JSON with three lists. What it reads lies beside it, or where a path from its folder leads; what it makes
lies in one folder, OUT/<name> for subjects and OUT/pairs for the pairs.

{"synthesise": [{"labels": "labels", "name": "synthesised"}],
 "vary": [{"subjects": "adults", "name": "varied", "copies": 2}],
 "simulate": [{"subjects": "synthesised", "preset": "siqt-k4", "thick_axis": "random"},
              {"subjects": "adults", "preset": "siqt-k4", "validation_subjects": ["sub-49"]}]}
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from lfmri_runtime.decoding import Mismatch, decode
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import write_text
from lfmri_trainer.simulation.draws import PairParameters
from lfmri_trainer.simulation.simulate import SimulationSettings, simulate_folder
from lfmri_trainer.synthesis.folder import synthesise_folder
from lfmri_trainer.variation import vary_folder

PAIRS = "pairs"
#: The recipe, beside what was made by it.
KEPT = "recipe.json"
MAX_BYTES = 1 << 20

Stage = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A folder of subjects that is made: its name, and the seed of its draws."""

    name: str
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Synthesised(Made):
    """Subjects from a folder of label maps, as `lfmri synthesise` makes them."""

    labels: str


@dataclass(frozen=True, kw_only=True)
class Varied(Made):
    """Copies of a folder of subjects, as `lfmri vary` makes them."""

    subjects: str
    copies: int = 1


@dataclass(frozen=True, kw_only=True)
class Simulated(SimulationSettings):
    """Pairs of a folder of subjects, as `lfmri simulate` makes them."""

    subjects: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is made, in this order."""

    synthesise: tuple[Synthesised, ...]
    vary: tuple[Varied, ...]
    simulate: tuple[Simulated, ...]

    @property
    def made(self) -> list[Made]:
        """The folders of subjects that are made."""
        return [*self.synthesise, *self.vary]


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; a list that is left out is empty, a setting that is left out has its default.

    Raises:
        InputRefused: not readable, an unknown key or a wrong type, a value out of range, or a folder that is missing.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Mismatch(f"{path.stat().st_size} bytes, more than {MAX_BYTES}")
        document = json.loads(path.read_bytes())
        kinds = {"synthesise": Synthesised, "vary": Varied, "simulate": Simulated}
        if isinstance(document, dict):
            document = {key: document.get(key, []) for key in kinds} | document
            document |= {key: [_filled(kind, one) for one in _listed(document[key])] for key, kind in kinds.items()}
        recipe: Recipe = decode(Recipe, document, "the recipe")
        _check(recipe, path.parent)
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise InputRefused(
            f"{path}: {error}; expected a recipe as docs/researchers.md shows one: mend it, then run it again"
        ) from None
    return recipe


def prepare(path: Path, out: Path, *, workers: int, stage: Stage) -> list[PairParameters]:
    """Make what a recipe says and is not there yet.

    Args:
        path: of the recipe.
        out: folder of the training set, new or from an earlier call with the same recipe.
        workers: processes, a subject each.
        stage: opens a progress bar under a heading.

    Returns:
        the pairs.

    Raises:
        InputRefused: the recipe, or what it reads, cannot be used; or `out` was made by another recipe.
    """
    recipe, text = read_recipe(path), path.read_text(encoding="utf-8")
    kept = out / KEPT
    if kept.is_file() and kept.read_text(encoding="utf-8") != text:
        raise InputRefused(
            f"{out} was made by another recipe, its {KEPT}; expected the same to go on with, or a new --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_text(kept, text)
    made = {one.name: out / one.name for one in recipe.made}

    def place(folder: str) -> Path:
        return made.get(folder, path.parent / folder)

    for maps in recipe.synthesise:
        with stage(f"synthesising {maps.name}") as progress:
            synthesise_folder(
                path.parent / maps.labels, made[maps.name], seed=maps.seed, workers=workers, progress=progress
            )
    for copied in recipe.vary:
        with stage(f"varying {copied.subjects}") as progress:
            options = {"copies": copied.copies, "seed": copied.seed, "workers": workers}
            vary_folder(place(copied.subjects), made[copied.name], **options, progress=progress)
    pairs = []
    for one in recipe.simulate:
        with stage(f"simulating {one.subjects}, {one.preset}") as progress:
            pairs += simulate_folder(place(one.subjects), out / PAIRS, one, workers=workers, progress=progress)
    return pairs


def _listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise Mismatch(f"{value!r:.60} where a list is expected")
    return value


def _filled(kind: Any, value: Any) -> Any:
    """An object with the defaults of what it leaves out."""
    defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    lists = {name: list(default) if isinstance(default, tuple) else default for name, default in defaults.items()}
    return lists | value if isinstance(value, dict) else value


def _check(recipe: Recipe, folder: Path) -> None:
    """Refuse before hours of work what would fail after them."""
    if not recipe.simulate:
        raise Mismatch("nothing to simulate")
    names = [one.name for one in recipe.made]
    for name in names:
        if names.count(name) > 1 or name in (PAIRS, "") or Path(name).name != name:
            raise Mismatch(f"the name {name!r} is taken, or no plain one")
    read = [one.labels for one in recipe.synthesise]
    read += [one.subjects for one in recipe.vary] + [one.subjects for one in recipe.simulate]
    missing = sorted({one for one in read if one not in names and not (folder / one).is_dir()})
    if missing:
        raise Mismatch(f"no folder {', '.join(missing)} beside it")
    for one in recipe.simulate:
        one.check()
    if min((one.seed for one in recipe.made), default=0) < 0 or min((v.copies for v in recipe.vary), default=1) < 1:
        raise Mismatch("a seed below 0, or fewer than one copy")
