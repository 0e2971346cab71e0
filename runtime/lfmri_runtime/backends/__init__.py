"""Back ends: each opens a bundle's step graph and gives a `Step`.

A back end is a module of this package that is imported when it is asked for, so that none needs to be installed but
the reference.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.errors import BackendMissing, UsageError
from lfmri_runtime.sampler import euler

if TYPE_CHECKING:
    from lfmri_runtime.backends.tensorrt.cuda import Device

Float32Array = NDArray[np.float32]

#: The back end that comes with the base and that defines the bytes of a result.
REFERENCE = "onnxruntime"
BACKENDS = (REFERENCE, "onnxruntime-cuda", "openvino", "tensorrt")
PRECISIONS = ("float32", "float16", "bfloat16")
#: What OpenVINO offers: it rounds the graph to what it is told, whatever type its weights have.
OPENVINO_PRECISIONS = ("float32", "bfloat16")


class Step(Protocol):
    """One Euler step on a machine, and the loop around it.

    A back end inherits the loop on the host, or brings one of its own where the device runs it faster.

    Attributes:
        name: of the back end.
        provider: what runs it, as its library says after opening, not as it was asked for.
        precision: of the arithmetic: the graph's own type, or what the back end was told to round to.
        seconds: spent inside the library's calls so far.
    """

    name: str
    provider: str
    precision: str
    seconds: float

    @property
    def broken(self) -> bool:
        """Whether the device failed so that nothing runs any more until a new process opens it."""
        return False

    @property
    def gpu(self) -> "Device | None":
        """The GPU that it runs on; None on a CPU, and where the library alone holds the GPU."""
        return None

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t), all (batch, 1, h, w)."""
        ...

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        """The Euler loop over a stream of (x_0, y), each (batch, 1, h, w); results in order."""
        for x_0, y in batches:
            yield euler(self, x_0, y, time_grid)

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Run once on zeros of this shape, so that the first scan does not pay for set-up; takes no part in seconds."""
        zeros = np.zeros(shape, dtype=np.float32)
        self(zeros, zeros, 0.0, 1.0)
        self.seconds = 0.0

    def close(self) -> None:
        """Free what the back end holds; the step is not used afterwards."""
        return


def precisions(name: str, bundle: Bundle) -> tuple[str, ...]:
    """The precisions in which a back end can run a bundle; the first is its default."""
    return OPENVINO_PRECISIONS if name == "openvino" else (bundle.contract.precision,)


def open_backend(
    bundle: Bundle, name: str = REFERENCE, *, precision: str | None = None, threads: int = 0, cache: Path | None = None
) -> Step:
    """Open a bundle's step graph with one back end.

    Args:
        bundle: verified.
        name: one of BACKENDS.
        precision: None takes the back end's default.
        threads: of the network's arithmetic on a CPU; 0 takes all cores.
        cache: where engines and compiled models lie; None takes the user's cache.

    Raises:
        UsageError: no such back end, or it does not run this bundle in that precision.
        BackendMissing: it is not installed, or not usable here; says why.
        BundleRefused: the graph or the engine must not be loaded.
    """
    if name not in BACKENDS:
        raise UsageError(f"--backend is {name!r}; expected one of auto, {', '.join(BACKENDS)}")
    offered = precisions(name, bundle)
    precision = offered[0] if precision is None else precision
    if precision not in offered:
        raise UsageError(f"{name} runs this bundle in {' or '.join(offered)}; --precision asked for {precision}")
    options: dict[str, Any] = {"cache": cache} if name == "tensorrt" else {"threads": threads}
    if name == "openvino":
        options |= {"precision": precision, "cache": cache}
    step: Step = _module(name).open_step(bundle, **options)
    return step


def _module(name: str) -> Any:
    """Import a back end's module.

    Raises:
        BackendMissing: this lfmri was built without it.
    """
    place = f"{__name__}.{name.replace('-', '_')}"
    try:
        return import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place:
            raise
        raise BackendMissing(f"the back end {name} is not part of this lfmri; install lfmri again") from None
