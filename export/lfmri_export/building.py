"""From step.onnx to an engine's bytes: what TensorRT 10, TensorRT 11 and TensorRT-RTX have in common.

Nothing here needs torch or onnx: a console builds from the bundle with TensorRT alone.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lfmri_runtime.backends.tensorrt.identity import Profile, Shape
from lfmri_runtime.backends.tensorrt.versions import create_log
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.console.settings import ModelSettings
from lfmri_runtime.device.verify import BATCHES
from lfmri_runtime.enhancer import BATCH
from lfmri_runtime.errors import BundleRefused, UsageError
from lfmri_runtime.golden import read_golden
from lfmri_runtime.trial import TRIAL_SHAPE

if TYPE_CHECKING:
    import tensorrt as trt

Progress = Callable[[int, int], None]
Configure = Callable[["trt.IBuilderConfig"], None]

#: Parts of a whole that progress is counted in.
PARTS = 1000
#: Rows and columns of the slices that `lfmri verify` enhances, mm.
PIECE_MM = (24, 16)


def check_profile(profile: Profile, bundle: Bundle) -> None:
    """Compare a profile with the slices that an engine has to pass its checks on before it is ever used.

    Raises:
        UsageError: it leaves some of them out; names them all.
    """
    processing = bundle.contract.processing
    grain = processing.voxel_size * processing.multiple
    rows, columns = (math.ceil(side / grain) * processing.multiple for side in PIECE_MM)
    warm = max(ModelSettings().warm_side // processing.multiple, 1) * processing.multiple
    checks = {
        "lfmri verify": [(batch, rows, columns) for batch in (min(BATCHES), max(BATCHES))],
        "the golden check": [_slices(read_golden(bundle).y.shape)],
        "the timing of --backend auto": [_slices(TRIAL_SHAPE)],
        "the warm-up of lfmri serve": [(BATCH, warm, warm)],
    }
    if not all(profile.covers(shape) for shapes in checks.values() for shape in shapes):
        needed = ", ".join(
            f"{' and '.join('x'.join(map(str, shape)) for shape in shapes)} ({check})"
            for check, shapes in checks.items()
        )
        raise UsageError(
            f"--profile is {profile}; expected one that covers {needed}: widen it, or leave the option out"
        )


def build_plan(
    trt: Any,
    bundle: Bundle,
    profile: Profile,
    *,
    configure: Configure,
    progress: Progress,
    use: Callable[[], None] | None = None,
) -> tuple[bytes, "trt.IBuilderConfig"]:
    """Parse a bundle's step graph and build an engine whose types are the graph's own.

    Args:
        trt: the library.
        bundle: verified.
        profile: the shapes that the engine shall take.
        configure: sets what this build has beside that.
        progress: called with (parts done, parts in all).
        use: makes the GPU that it is built on current in a thread; None where it is built on none.

    Returns:
        the engine's bytes, and the configuration with the timings that were measured.

    Raises:
        BundleRefused: the library refuses the graph, or its inputs are not those of the contract.
    """
    log = create_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(bundle.read(STEP)):
        reason = parser.get_error(0).desc() if parser.num_errors else log.error
        raise BundleRefused(f"{bundle.path / STEP}: TensorRT refuses the graph ({_line(reason)}); export it again")
    _check_inputs(trt, network, bundle)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 in the graph means float32
    config.add_optimization_profile(_profile(builder, bundle, profile))
    configure(config)
    monitor = create_monitor(trt, progress)
    config.progress_monitor = monitor
    # In a thread of its own: a signal raises in the main thread only, and must not do so inside the library's calls.
    with ThreadPoolExecutor(1) as thread:
        if use is not None:  # a thread begins with no GPU of its own, and the library would take the first
            thread.submit(use).result()
        building = thread.submit(builder.build_serialized_network, network, config)
        try:
            plan = building.result()
        finally:
            monitor.stopped = True
    if plan is None:
        raise BundleRefused(f"{bundle.path / STEP}: TensorRT builds no engine from the graph ({log.error})")
    return bytes(plan), config


def create_monitor(trt: Any, progress: Progress) -> Any:
    """Make a progress monitor; phases are nested, and a phase is worth one step of the phase around it.

    Set `stopped` to end the build at its next step. Nothing else ends it: the library may call from several threads,
    and would take an exception for a wish to stop.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._phases: dict[str, tuple[int, int]] = {}
            self._share = 0.0
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases[name] = (0, max(steps, 1))

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock, suppress(Exception):  # of a phase that never began, of a terminal that is gone
                self._phases[name] = (step + 1, self._phases[name][1])
                self._share = max(self._share, self._done())  # a phase may end before its last step
                progress(round(PARTS * self._share), PARTS)
            return not self.stopped

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.pop(name, None)

        def _done(self) -> float:
            share, weight = 0.0, 1.0
            for done, steps in self._phases.values():
                share += weight * done / steps
                weight /= steps
            return min(share, 1.0)

    return Monitor()


def _profile(builder: "trt.Builder", bundle: Bundle, profile: Profile) -> "trt.IOptimizationProfile":
    """The profile of each input: images have a channel axis, t and dt the batch axis alone."""
    settings = builder.create_optimization_profile()
    shapes = (profile.smallest, profile.usual, profile.largest)
    for spec in bundle.contract.inputs:
        image = len(spec.shape) > 1
        settings.set_shape(spec.name, *((b, 1, rows, columns) if image else (b,) for b, rows, columns in shapes))
    return settings


def _slices(shape: tuple[int, ...]) -> Shape:
    """(batch, rows, columns) of images."""
    batch, _, rows, columns = shape
    return batch, rows, columns


def _check_inputs(trt: Any, network: "trt.INetworkDefinition", bundle: Bundle) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    found = [(tensor.name, trt.nptype(tensor.dtype).__name__, len(tensor.shape)) for tensor in tensors]
    expected = [(spec.name, spec.dtype, len(spec.shape)) for spec in bundle.contract.inputs]
    if found != expected:
        raise BundleRefused(f"{bundle.path / STEP} has the inputs {found}; its contract says {expected}")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
