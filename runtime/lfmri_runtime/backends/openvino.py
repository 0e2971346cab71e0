"""OpenVINO on the CPU (extra `openvino`): float32, or bfloat16 where the CPU multiplies it (AMX, AVX512-BF16)."""

import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends import Step
from lfmri_runtime.backends.openvino_cache import CompiledModels
from lfmri_runtime.backends.openvino_library import import_openvino, rehearse, telling_memory
from lfmri_runtime.backends.openvino_norm import normalise_channels_last
from lfmri_runtime.backends.openvino_parts import Parts, split_last, split_time
from lfmri_runtime.backends.signal_stack import kept_signal_stack
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.cache import cache_folder
from lfmri_runtime.errors import BackendMissing, BundleRefused
from lfmri_runtime.sampler import euler, uniform_time_grid

Float32Array = NDArray[np.float32]
Shape = tuple[int, int, int, int]

#: Our names of precisions, and OpenVINO's.
HINTS = {"float32": "f32", "bfloat16": "bf16"}
#: Batches that run side by side at most; each holds its own activations (assumed).
MAX_STREAMS = 4
#: Compiled models that stay: one for each plane of a volume.
MODELS = 3


class OpenVinoStep(Step):
    """One Euler step by OpenVINO's CPU plugin; models are compiled for each shape of batch that is met.

    A stream of batches runs several at a time, a thread or more each, which on few cores is faster than all cores on
    one batch; a stream of fewer batches than that runs one at a time on all cores.

    Args:
        bundle: verified; the bytes that are hashed are the bytes that are loaded.
        precision: float32 or bfloat16.
        threads: of the network's arithmetic; 0 takes all cores.
        cache: where compiled models are kept; None takes the user's cache.

    Raises:
        BackendMissing: OpenVINO is not installed, or this CPU has no bfloat16 arithmetic.
        BundleRefused: the graph cannot be loaded, or its arrays are not those of the contract.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, precision: str = "float32", threads: int = 0, cache: Path | None = None):
        openvino = import_openvino()
        with kept_signal_stack():
            rehearse(openvino)
            self._core = openvino.Core()
            capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in capabilities:
            raise BackendMissing("this CPU has no bfloat16 arithmetic (AMX or AVX512-BF16); take --precision float32")
        self._content = bundle.read(STEP)
        self._place = bundle.path / STEP
        self._read(bundle)
        self.precision = precision
        self.provider = f"CPU: {self._core.get_property('CPU', 'FULL_DEVICE_NAME')}"
        self.seconds = 0.0
        cores = len(os.sched_getaffinity(0))
        self._threads = min(threads, cores) if threads else cores
        self._streams = min(self._threads, MAX_STREAMS)
        self._models: OrderedDict[tuple[Shape, int], tuple[Any, ...]] = OrderedDict()
        folder = (cache_folder() if cache is None else cache) / "openvino" / bundle.sha256[:16]
        self._compiled_models = CompiledModels(self._core, folder, openvino.__version__)

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w).

        Raises:
            TryAgainLater: too little memory.
        """
        start = time.perf_counter()
        with telling_memory():
            result = Parts(self._model(x_t.shape, streams=1)).infer(x_t, y, t, dt)
        self.seconds += time.perf_counter() - start
        return result

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        """The Euler loop over a stream of (x_0, y), each (batch, 1, h, w), several batches at a time; in order.

        Raises:
            TryAgainLater: too little memory.
        """
        stream = iter(batches)
        first = list(islice(stream, self._streams))
        if not first:
            return
        streams = self._streams if len(first) == self._streams else 1
        start = time.perf_counter()
        with telling_memory():
            model = self._model(first[0][0].shape, streams=streams)
            idle = deque(Parts(model) for _ in range(streams))
        self.seconds += time.perf_counter() - start
        size = len(first[0][0])
        running: deque[Future[Float32Array]] = deque()

        def run(x_0: Float32Array, y: Float32Array) -> Float32Array:
            request = idle.popleft()
            try:
                full_x_0, full_y = (_filled(part, size) for part in (x_0, y))
                x_1 = euler(request.infer, full_x_0, full_y, time_grid)
                return x_1[: len(x_0)]
            finally:
                idle.append(request)

        with ThreadPoolExecutor(streams) as pool:
            for x_0, y in chain(first, stream):
                if len(running) == streams:
                    yield self._awaited(running.popleft())
                running.append(pool.submit(run, x_0, y))
            while running:
                yield self._awaited(running.popleft())

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Compile for a volume of such batches, which run side by side, and run once; takes no part in seconds."""
        zeros = np.zeros(shape, dtype=np.float32)
        for _ in self.flow([(zeros, zeros)] * self._streams, uniform_time_grid(1)):
            pass
        self.seconds = 0.0

    def close(self) -> None:
        """Free the compiled models."""
        self._models.clear()

    def _awaited(self, future: "Future[Float32Array]") -> Float32Array:
        start = time.perf_counter()
        with telling_memory():
            result = future.result()
        self.seconds += time.perf_counter() - start
        return result

    def _model(self, shape: tuple[int, ...], *, streams: int) -> tuple[Any, ...]:
        """The graph's parts compiled for a shape; the library must say that it runs in the asked precision."""
        batch, _, rows, columns = shape
        key = ((batch, 1, rows, columns), streams)
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        model = self._core.read_model(self._content)
        image = [batch, 1, rows, columns]
        model.reshape({"x_t": image, "y": image, "t": [batch], "dt": [batch]})
        openvino = import_openvino()
        with kept_signal_stack():
            if self.precision == "bfloat16":
                time_part, image_part = split_time(openvino, model)
                image_part, *last_part = split_last(openvino, image_part)
                exact = [self._compiled(part, "float32", key, n) for n, part in enumerate((time_part, *last_part))]
                parts = (exact[0], self._compiled(image_part, self.precision, key, 0), *exact[1:])
            else:
                normalise_channels_last(openvino, model)
                parts = (self._compiled(model, self.precision, key, 0),)
        while len(self._models) >= MODELS:
            self._models.popitem(last=False)
        self._models[key] = parts
        return self._models[key]

    def _compiled(self, model: Any, precision: str, key: tuple[Shape, int], number: int) -> Any:
        """A part compiled; `number` tells parts of one precision apart. The library must say that it runs so."""
        streams = key[1]
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
        }
        compiled = self._compiled_models.compile(model, settings, key, self.precision, number)
        found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if found != HINTS[precision]:
            raise BackendMissing(f"OpenVINO was asked for {HINTS[precision]} and runs in {found} on this CPU")
        return compiled

    def _read(self, bundle: Bundle) -> None:
        """Read the graph once, to refuse it now rather than in the midst of a volume."""
        try:
            model = self._core.read_model(self._content)
        except Exception as error:  # noqa: BLE001 - the library raises RuntimeError and classes of its own
            reason = str(error).splitlines()[0]
            raise BundleRefused(f"{self._place} cannot be loaded ({reason}); export the bundle again") from None
        found = {value.any_name for value in (*model.inputs, *model.outputs)}
        expected = {spec.name for spec in (*bundle.contract.inputs, *bundle.contract.outputs)}
        if found != expected:
            raise BundleRefused(f"{self._place} has the arrays {sorted(found)}; its contract says {sorted(expected)}")


def open_step(bundle: Bundle, *, precision: str = "float32", threads: int = 0, cache: Path | None = None) -> Step:
    """Open OpenVINO."""
    return OpenVinoStep(bundle, precision=precision, threads=threads, cache=cache)


def _filled(part: Float32Array, size: int) -> Float32Array:
    """A last short batch with zeros behind, since the model is compiled for one size."""
    return (
        part if len(part) == size else np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
    )
