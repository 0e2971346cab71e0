"""Methods that are fitted on pairs: their settings, and their file of plain arrays.

A fitted method is one .npz: its arrays, and under `about` a JSON text that says what it was fitted with. Nothing in it
is pickled, and nothing is unpickled.
"""

import json
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from lfmri_runtime.decoding import decode
from lfmri_runtime.errors import InputRefused, UsageError
from lfmri_runtime.files import atomic_write, sha256_file
from lfmri_trainer.baselines.method import Context, Method, Progress
from lfmri_trainer.baselines.pairs import TrainingPairs, scale_of
from lfmri_trainer.weights import Learned

Arrays = Mapping[str, NDArray[Any]]
#: Name of the JSON text among the arrays.
ABOUT = "about"
#: Unpacked bytes that a fitted method may have: a hundred times the largest network's weights.
MAX_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class About:
    """What a fitted method was fitted with.

    Attributes:
        method: its key.
        settings: its settings, by name.
        data: identity of the training pairs.
        scale: identity of their processing.
        subjects: names of those that it learned from, also before this fit.
        presets: of the simulated scans, likewise; none in the file of a fit that was made before they were kept.
        budget: what was spent, in words.
    """

    method: str
    settings: dict[str, Any]
    data: str
    scale: str
    subjects: tuple[str, ...]
    presets: tuple[str, ...]
    budget: str


class Fitted(Method):
    """A method with settings (a frozen dataclass) and arrays.

    Args:
        settings: of the fit.

    Attributes:
        about: None before it is fitted.
    """

    Settings: ClassVar[type[Any]]
    fitted = True

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.about: About | None = None

    def earlier(self) -> Learned:
        """What the weights that the fit starts from have learned from; nothing, as a rule."""
        return Learned()

    @abstractmethod
    def learn(self, training: TrainingPairs, *, checkpoint: Path, progress: Progress) -> str:
        """Fit; return what was spent, in words.

        Args:
            training: pairs to fit on.
            checkpoint: where a long fit keeps its state, to go on with when it was stopped; removed at the end.
            progress: called with (done, total) in any unit.
        """

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that was learned."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Take what `arrays` gave. Raises KeyError, ValueError or RuntimeError for arrays of something else."""

    def fit(self, training: TrainingPairs, *, checkpoint: Path, progress: Progress = lambda done, total: None) -> Self:
        """Fit on pairs, and remember what with."""
        described, before = asdict(self.settings), self.earlier()
        budget = self.learn(training, checkpoint=checkpoint, progress=progress)
        self.about = About(
            method=self.key,
            settings=described,
            data=training.identity,
            scale=training.scale,
            subjects=tuple(sorted({*training.subjects, *before.subjects})),
            presets=tuple(sorted({*training.presets, *before.presets})),
            budget=budget,
        )
        self.budget = budget
        checkpoint.unlink(missing_ok=True)
        return self

    def save(self, path: Path) -> None:
        """Write the arrays; equal methods give equal bytes."""
        assert self.about is not None, "only a fitted method is saved"
        save_arrays(path, self.arrays(), asdict(self.about))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputRefused: not readable, or not of this method.
        """
        try:
            arrays, text = load_arrays(path)
            about: About = decode(About, {"presets": [], **text}, ABOUT)
            if about.method != cls.key:
                raise ValueError(f"it holds {about.method!r}")
            method = cls(decode(cls.Settings, about.settings, "settings"))
            method.restore(arrays)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputRefused(
                f"{path}: {reason}; expected a fitted {cls.key}: fit it again, in another folder"
            ) from None
        method.about, method.budget = about, about.budget
        method.identity = f"{cls.key} {sha256_file(path)}"
        return method

    @classmethod
    def usual_settings(cls, context: Context) -> Any:
        """Return what is taken where nothing is asked."""
        return cls.Settings()

    @classmethod
    def prepare(cls, context: Context) -> Sequence[Method]:
        """Load the fitted method, or fit and save it first."""
        path = context.fitted / f"{cls.key}.npz"
        changes = context.changes.get(cls.key, {})
        if not path.is_file():
            method = cls(change(cls.usual_settings(context), changes, cls.key))
            context.refuse_tested(method.earlier(), f"what {cls.key} starts from")
            training = context.pairs()
            path.parent.mkdir(parents=True, exist_ok=True)
            with context.progress(f"fitting {method.title}") as progress:
                method.fit(training, checkpoint=path.with_suffix(".checkpoint.npz"), progress=progress)
            method.save(path)
        loaded = cls.load(path)
        if loaded.about is None or loaded.about.scale != scale_of(context.processing):
            raise InputRefused(
                f"{path} was fitted on another scale or voxel size than the bundle's; expected the same: fit it again, "
                "in another folder"
            )
        if changes and change(loaded.settings, changes, cls.key) != loaded.settings:
            raise UsageError(
                f"{path} was fitted with other settings than --fit {cls.key} asks for; leave that option out to use "
                "it, or give another folder with --fitted"
            )
        context.refuse_tested(loaded.about, cls.key)
        return [loaded]


def change(settings: Any, changes: Mapping[str, str], key: str) -> Any:
    """Replace settings by values given as text.

    Raises:
        UsageError: no such setting, or a value of another type.
    """
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(settings)}
    values = {}
    for name, text in changes.items():
        if name not in kinds:
            raise UsageError(f"--fit {key}: no setting {name!r}; expected some of {', '.join(kinds)}")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise UsageError(
                f"--fit {key}: {name} is {text!r}; expected a value like {getattr(settings, name)}"
            ) from None
    return replace(settings, **values)


def save_arrays(path: Path, arrays: Arrays, about: Mapping[str, Any]) -> None:
    """Write arrays and a JSON text in one move."""
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{ABOUT: np.array(json.dumps(about)), **arrays})


def load_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    """Read what `save_arrays` wrote: the arrays, and the JSON value.

    Raises:
        ValueError: not such a file, or one that would take too much memory.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
        if unpacked > MAX_BYTES:
            raise ValueError(f"{unpacked} bytes unpacked, more than {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(str(arrays.pop(ABOUT)))
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or "it ends too early") from None
