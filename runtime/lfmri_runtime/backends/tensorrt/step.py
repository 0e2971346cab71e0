"""The TensorRT back end: one Euler step, and the Euler loop over a stream of batches."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends.tensorrt.arrays import DeviceArray, on_device
from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.engine import open_engine
from lfmri_runtime.backends.tensorrt.plan import SLOTS, Float32Array, Plan, Slot, Streams, Times, Workspace
from lfmri_runtime.backends.tensorrt.versions import activation_bytes
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.errors import InputRefused, TryAgainLater

#: Shapes and numbers of steps that stay set up: a volume has a full and a last batch in each of three planes.
PLANS = 8


class TensorRtStep:
    """One Euler step by an engine that `lfmri export --trt` made; not for use in several threads at once.

    Device memory is taken in two sizes: the engine's workspace for its profile's largest shape at opening, and a few
    slices' worth for each shape that is met. A failure of the device frees all of it.

    Args:
        bundle: verified.
        cache: where the engines lie; None takes the user's cache.

    Raises:
        BackendMissing: no GPU, no driver, no library, or no engine of this bundle.
        BundleRefused: the engine is not this machine's or was changed; names the field.
        TryAgainLater: the GPU has too little memory.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, *, cache: Path | None = None) -> None:
        self.seconds = 0.0
        self.precision = bundle.contract.precision
        self._multiple = bundle.contract.processing.multiple
        self._busy = threading.Lock()
        self._new_shape = False
        self._plans: OrderedDict[tuple[tuple[int, ...], int], Plan] = OrderedDict()
        with ExitStack() as scope:
            self._device = self.gpu = Device()
            self._engine = open_engine(bundle, self._device, cache=cache)
            scope.callback(delattr, self, "_engine")
            identity = self._engine.identity
            self.provider = f"{identity.library} {identity.library_version} on {self._device.name}"
            size = activation_bytes(self._engine.trt, self._engine.engine)
            self._workspace = Workspace(self._device.memory(max(size, 1), scope), size)
            self._streams = Streams(*(self._device.stream(scope) for _ in range(3)))
            scope.callback(self._close_plans)
            self._scope = scope.pop_all()
        self._open = True

    @property
    def broken(self) -> bool:
        """Whether a failure of the GPU has closed the step."""
        return self._device.failed

    def __call__(self, x_t: Float32Array, y: Float32Array, t: float, dt: float) -> Float32Array:
        """x_t + dt * v(x_t, y, t); x_t and y (batch, 1, h, w), each on the host or on the GPU.

        Raises:
            InputRefused: slices that the engine does not take.
            TryAgainLater: too little memory, or the device failed.
        """
        (result,) = self._run([(x_t, y)], ((t, dt),))
        return result

    def flow(
        self, batches: Iterable[tuple[Float32Array, Float32Array]], time_grid: NDArray[np.float64]
    ) -> Iterator[Float32Array]:
        """Integrate dx/dt = v(x_t, y, t) for a stream of batches, the next one uploaded while one is computed.

        Args:
            batches: (x_0, y), each (batch, 1, h, w), on the host or (`__cuda_array_interface__`) on the GPU, where it
                is read in place and must not change until its result is here.
            time_grid: ascending from 0 to 1.

        Yields:
            x at time 1 of each batch, in order.

        Raises:
            InputRefused: slices that the engine does not take.
            TryAgainLater: too little memory, or the device failed.
        """
        return self._run(batches, tuple((t, t_next - t) for t, t_next in pairwise(time_grid.tolist())))

    def warmup(self, shape: tuple[int, int, int, int]) -> None:
        """Run one step on zeros; takes no part in `seconds`."""
        zeros = np.zeros(shape, dtype=np.float32)
        self(zeros, zeros, 0.0, 1.0)
        self.seconds = 0.0

    def close(self) -> None:
        """Free all device memory; the step cannot be used afterwards."""
        self._open = False
        with suppress(TryAgainLater):  # of a device that is lost; what it held is let go all the same
            self._device.use()
        self._scope.close()

    def _run(self, batches: Iterable[tuple[Float32Array, Float32Array]], times: Times) -> Iterator[Float32Array]:
        if not self._busy.acquire(blocking=False):
            raise TryAgainLater("the engine is at work on another scan; expected one scan at a time")
        pending: deque[tuple[Plan, Slot]] = deque()
        try:
            for x_0, y in batches:
                pending.append(self._submit(x_0, y, times))
                if len(pending) == SLOTS:
                    yield self._collect(*pending.popleft())
            while pending:
                yield self._collect(*pending.popleft())
        finally:
            self._leave(idle=not pending)
            self._busy.release()

    def _submit(self, x_0: Float32Array, y: Float32Array, times: Times) -> tuple[Plan, Slot]:
        started = time.perf_counter()
        if not self._open:
            raise TryAgainLater("the engine was closed, by its owner or after the GPU failed; open it again")
        shape = self._checked_shape(x_0, y)
        self._device.use()
        plan = self._plan(shape, len(times))
        slot = plan.submit(_taken(x_0, shape), _taken(y, shape), times)
        self.seconds += time.perf_counter() - started
        return plan, slot

    def _collect(self, plan: Plan, slot: Slot) -> Float32Array:
        started = time.perf_counter()
        self._device.use()
        result = plan.collect(slot)
        self.seconds += time.perf_counter() - started
        return result

    def _plan(self, shape: tuple[int, int, int, int], steps: int) -> Plan:
        """The set-up for a shape, made where it is new; the one that was not used for longest makes room."""
        key = (shape, steps)
        if key not in self._plans:
            while len(self._plans) >= PLANS:
                self._plans.popitem(last=False)[1].close()
            self._plans[key] = Plan(
                self._device, self._engine, self._streams, self._workspace, shape=shape, steps=steps
            )
            self._new_shape = True
        self._plans.move_to_end(key)
        return self._plans[key]

    def _leave(self, *, idle: bool) -> None:
        """Wait for what an unfinished flow left on the device; after a failure free everything."""
        with suppress(TryAgainLater):
            if not idle and not self._device.failed:
                self._device.use()
                for stream in (self._streams.upload, self._streams.compute, self._streams.download):
                    self._device.drain(stream)
            self._keep_kernels()
        if self._device.failed:
            self.close()

    def _keep_kernels(self) -> None:
        """Keep the kernels of new shapes now, since a process may end without closing."""
        if self._new_shape and self._open and not self._device.failed and self._engine.kernels is not None:
            self._device.use()
            self._engine.kernels.keep()
        self._new_shape = False

    def _close_plans(self) -> None:
        while self._plans:
            self._plans.popitem()[1].close()

    def _checked_shape(self, x_0: Float32Array, y: Float32Array) -> tuple[int, int, int, int]:
        profile = self._engine.identity.profile
        shape = tuple(np.shape(y))
        if len(shape) == 4 and np.shape(x_0) == shape and shape[1] == 1:
            batch, _, rows, columns = shape
            if profile.covers((batch, rows, columns)) and not (rows % self._multiple or columns % self._multiple):
                return batch, 1, rows, columns
        raise InputRefused(
            f"slices of {np.shape(x_0)} and {shape}; the engine takes (batch, 1, rows, columns) within {profile}, "
            f"sides multiples of {self._multiple}: make one with another `lfmri export --trt --profile`, or run with "
            "--backend onnxruntime"
        )


def _taken(array: Any, shape: tuple[int, int, int, int]) -> Float32Array | DeviceArray:
    found = on_device(array, shape)
    return np.asarray(array, dtype=np.float32) if found is None else found
