"""What every method of the benchmark offers: chosen slices of a scan, enhanced.

Some methods work on slices and some on volumes; a `Request` holds the whole interpolated scan and says which slices
are asked for, so that both answer alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.contract import Processing
from lfmri_runtime.slices import batches, slices_of
from lfmri_trainer.baselines.pairs import TrainingPairs

Float32Array = NDArray[np.float32]
Element = TypeVar("Element", bound=np.generic)
Progress = Callable[[int, int], None]
#: Slices that a method sees at once; bounds the memory.
BATCH = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """Slices of one scan that are to be enhanced.

    Attributes:
        y: the low-field scan on the working grid by cubic interpolation, (x, y, z) in RAS order, scaled by the
            contract: the flow's condition.
        thick_axis: of the scan, 0 to 2.
        normal: axis that the slices are normal to, another than the thick one.
        indices: of the slices along `normal`, ascending.
    """

    y: Float32Array
    thick_axis: int
    normal: int
    indices: tuple[int, ...]

    def slices(self, volume: NDArray[Element]) -> NDArray[Element]:
        """Cut the asked slices from a volume on the grid of `y`: (slices, rows, columns), rows along the thick axis."""
        cut = slices_of(volume, normal=self.normal, thick_axis=self.thick_axis)  # type: ignore[arg-type]
        return np.ascontiguousarray(cut[list(self.indices)])


@dataclass(frozen=True, kw_only=True)
class Context:
    """What methods are made from.

    Attributes:
        bundle: the proposed model.
        steps: numbers of Euler steps that it is judged at.
        threads: of all arithmetic; 0 takes all cores.
        pairs: opens the training pairs, when they are first needed.
        fitted: folder of fitted methods.
        changes: settings by method key that differ from the method's own, as text.
        progress: gives a progress bar for a label.
        refuse_tested: raises InputRefused where what learned from these subjects and presets (called so) cannot be
            tested.
    """

    bundle: Bundle
    steps: tuple[int, ...]
    threads: int
    pairs: Callable[[], TrainingPairs]
    fitted: Path
    changes: Mapping[str, Mapping[str, str]]
    progress: Callable[[str], AbstractContextManager[Progress]]
    refuse_tested: "Callable[[KnowsNames, str], None]"

    @property
    def processing(self) -> Processing:
        """Scales and working grid: the bundle's, for every method."""
        return self.bundle.contract.processing


class KnowsNames(Protocol):
    """What says which subjects and presets something has learned from."""

    @property
    def subjects(self) -> Sequence[str]:
        """Names of the subjects."""

    @property
    def presets(self) -> Sequence[str]:
        """Names of the simulator's presets."""


class Method(ABC):
    """One row of the benchmark's tables.

    Attributes:
        key: its name in files and on the command line.
        title: its name in tables.
        note: what a reader must know of its scores; empty where there is nothing.
        parameters: number of learned numbers.
        budget: what it was fitted with, in words.
        identity: changes whenever its results may.
        fitted: whether it needs training pairs, or a file of a fit.
        proposed: whether it is the model that the others are compared with.
    """

    key: str
    title: str
    note: ClassVar[str] = ""
    parameters: int
    budget: str
    identity: str
    fitted: ClassVar[bool] = False
    proposed: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def prepare(cls, context: Context) -> "Sequence[Method]":
        """Make the method ready to enhance; the proposed model gives one for each number of Euler steps.

        Raises:
            UsageError: changed settings that the method does not have.
            InputRefused: a fitted method that cannot be used, or no pairs to fit it on.
        """

    @abstractmethod
    def enhance(self, request: Request) -> Float32Array:
        """Estimate x_1 on the asked slices: (slices, rows, columns), on the standard scale, not yet clipped."""

    @abstractmethod
    def slices_computed(self, request: Request) -> int:
        """Count the slices that `enhance` computes to answer; what its duration is divided by."""


class SliceMethod(Method):
    """A method that sees one slice at a time."""

    @abstractmethod
    def enhance_slices(self, y: Float32Array) -> Float32Array:
        """(slices, rows, columns) -> the same shape."""

    def enhance(self, request: Request) -> Float32Array:
        """Enhance the asked slices and no others."""
        y = request.slices(request.y)
        return np.concatenate([self.enhance_slices(y[part]) for part in batches(len(y), BATCH)])

    def slices_computed(self, request: Request) -> int:
        """As many as are asked for."""
        return len(request.indices)


class VolumeMethod(Method):
    """A method that sees the whole scan."""

    @abstractmethod
    def enhance_volume(self, y: Float32Array) -> Float32Array:
        """(z, a, b) with the thick axis first -> the same shape."""

    def enhance(self, request: Request) -> Float32Array:
        """Enhance the volume, then cut the asked slices."""
        y = np.ascontiguousarray(np.moveaxis(request.y, request.thick_axis, 0))
        return request.slices(np.moveaxis(self.enhance_volume(y), 0, request.thick_axis))

    def slices_computed(self, request: Request) -> int:
        """All of the volume's."""
        return int(request.y.shape[request.normal])
