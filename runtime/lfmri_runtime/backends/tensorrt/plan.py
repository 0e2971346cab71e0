"""One shape and number of steps: its context, its buffers, and its Euler loop as a CUDA graph.

    upload    x, y of batch n + 1        (pinned -> device)
    compute   K steps of batch n         x_a -> x_b -> x_a ..., one graph
    download  x of batch n - 1           (device -> pinned)

Two slots take turns, each with its own buffers, so that the three streams work on different batches. Within a slot the
order is kept by events; a slot is taken again only after its result was collected on the host.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.backends.tensorrt.arrays import ALIGNMENT, DeviceArray
from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.engine import Engine
from lfmri_runtime.backends.tensorrt.versions import create_context
from lfmri_runtime.errors import TryAgainLater

if TYPE_CHECKING:
    import tensorrt as trt

Float32Array = NDArray[np.float32]
Times = tuple[tuple[float, float], ...]

#: Batches in flight: one is computed while the next is uploaded and the one before is downloaded.
SLOTS = 2
#: Longer loops are enqueued step by step: a graph of many thousand kernels costs more than its launch saves (assumed).
GRAPH_STEPS = 64
FLOAT_BYTES = 4


@dataclass(frozen=True, eq=False)
class Streams:
    """The three streams of a step."""

    upload: Any
    compute: Any
    download: Any


@dataclass(frozen=True, eq=False)
class Workspace:
    """Device memory that all contexts of an engine work in; they run one after another on one stream."""

    address: int
    size: int


class Slot:
    """The buffers of one batch in flight.

    Attributes:
        x: pinned, (batch, 1, h, w), noise to upload.
        y: pinned, the condition to upload.
        result: pinned, what was downloaded.
        x_a: device address of the noise, and of every second state.
        x_b: device address of the other states.
        y_d: device address of the condition.
        graph: all steps on these buffers; None for a loop too long for one.
        context: that the graph was recorded from, and that nothing else may use.
        owners: the arrays that were given, kept alive until they were read.
    """

    def __init__(
        self, device: Device, shape: tuple[int, ...], pinned: NDArray[np.uint8], memory: int, scope: ExitStack
    ):
        self.x, self.y, self.result = pinned.view(np.float32).reshape(3, *shape)
        self.x_a, self.x_b, self.y_d = (memory + n * self.x.nbytes for n in range(3))
        self.uploaded, self.computed, self.downloaded = (device.event(scope) for _ in range(3))
        self.graph: Any = None
        self.context: Any = None
        self.owners: tuple[Any, ...] = ()


class Plan:
    """The loop for one shape and number of steps; everything of it is freed by `close`.

    Args:
        device: CUDA.
        engine: opened.
        streams: of the step.
        workspace: of the engine.
        shape: (batch, 1, h, w), within the engine's profile.
        steps: of the Euler method.

    Raises:
        TryAgainLater: too little memory, or the device failed; nothing is left allocated.
    """

    def __init__(
        self,
        device: Device,
        engine: Engine,
        streams: Streams,
        workspace: Workspace,
        *,
        shape: tuple[int, int, int, int],
        steps: int,
    ) -> None:
        self._device, self._engine, self._streams, self._workspace = device, engine, streams, workspace
        self._shape, self._steps = shape, steps
        self._times: Times | None = None
        self._loose: trt.IExecutionContext | None = None
        self._turn = 0
        self._row = -(-shape[0] * FLOAT_BYTES // ALIGNMENT) * ALIGNMENT
        buffers = 3 * FLOAT_BYTES * math.prod(shape)
        size = SLOTS * buffers + 2 * steps * self._row
        with ExitStack() as scope:
            scope.callback(self._drop_contexts)
            memory, pinned = device.memory(size, scope), device.pinned(size, scope)
            self._slots = [
                Slot(device, shape, pinned[n * buffers : (n + 1) * buffers], memory + n * buffers, scope)
                for n in range(SLOTS)
            ]
            self._times_d = memory + SLOTS * buffers
            self._times_h = pinned[SLOTS * buffers :].view(np.float32).reshape(steps, 2, -1)
            for slot in self._slots if steps <= GRAPH_STEPS else ():
                slot.context = self._open_context(slot)
                enqueue = partial(self._enqueue, slot.context, slot, slot.x_a, slot.y_d)
                slot.graph = device.graph(streams.compute, enqueue, scope)
            self._scope = scope.pop_all()

    def close(self) -> None:
        """Free everything; the streams must be idle."""
        self._scope.close()

    def submit(self, x_0: Float32Array | DeviceArray, y: Float32Array | DeviceArray, times: Times) -> Slot:
        """Start one batch; returns before it is done, at most SLOTS times before `collect`.

        Args:
            x_0: noise, on the host or on the device.
            y: the condition, likewise.
            times: (t, dt) of each step; the same until the streams are idle.
        """
        device, streams = self._device, self._streams
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % SLOTS
        self._load_times(times)
        x_address = self._bring(slot, x_0, slot.x, slot.x_a)
        y_address = self._bring(slot, y, slot.y, slot.y_d)
        if x_address == slot.x_a or y_address == slot.y_d:
            device.record(slot.uploaded, streams.upload)
            device.wait(streams.compute, slot.uploaded)
        if slot.graph is not None and (x_address, y_address) == (slot.x_a, slot.y_d):
            device.launch(slot.graph, streams.compute)
        else:  # a graph reads the slot's own buffers only
            self._loose = self._loose or self._open_context(slot)
            self._enqueue(self._loose, slot, x_address, y_address)
        device.record(slot.computed, streams.compute)
        device.wait(streams.download, slot.computed)
        device.download(slot.result, slot.x_b if self._steps % 2 else slot.x_a, streams.download)
        device.record(slot.downloaded, streams.download)
        slot.owners = (x_0, y)
        return slot

    def collect(self, slot: Slot) -> Float32Array:
        """Wait for a batch and give its result, (batch, 1, h, w)."""
        self._device.finish(slot.downloaded)
        slot.owners = ()
        return np.copy(slot.result)

    def _bring(self, slot: Slot, array: Float32Array | DeviceArray, pinned: Float32Array, address: int) -> int:
        """Where the compute stream reads an array: its own place, or the slot's, once it is uploaded."""
        device, streams = self._device, self._streams
        if isinstance(array, DeviceArray):
            device.wait_for_stream(streams.compute, array.stream, slot.uploaded)
            return array.address
        pinned[:] = array
        device.upload(address, pinned, streams.upload)
        return address

    def _load_times(self, times: Times) -> None:
        if times != self._times:
            self._times_h[:] = np.array(times)[..., None]
            self._device.upload(self._times_d, self._times_h, self._streams.compute)
            self._times = times

    def _open_context(self, slot: Slot) -> "trt.IExecutionContext":
        """Make a context for the shape and run it once, which settles it: no graph can hold what that allocates."""
        engine, workspace = self._engine, self._workspace
        context = create_context(
            engine.trt, engine.engine, engine.settings, memory=workspace.address, size=workspace.size
        )
        shapes = {"x_t": self._shape, "y": self._shape, "t": self._shape[:1], "dt": self._shape[:1]}
        if context is None or not all(context.set_input_shape(name, shape) for name, shape in shapes.items()):
            raise TryAgainLater(
                f"TensorRT made no context for slices of {self._shape} ({engine.log.error}); close other programs"
            )
        self._enqueue_step(context, 0, x=slot.x_a, y=slot.y_d, x_next=slot.x_b)
        self._device.drain(self._streams.compute)
        return context

    def _drop_contexts(self) -> None:
        self._slots, self._loose = [], None

    def _enqueue(self, context: "trt.IExecutionContext", slot: Slot, x: int, y: int) -> None:
        """Put all steps on the compute stream: x, then x_b, x_a, x_b ... in turn."""
        for n in range(self._steps):
            x_next = slot.x_a if n % 2 else slot.x_b
            self._enqueue_step(context, n, x=x, y=y, x_next=x_next)
            x = x_next

    def _enqueue_step(self, context: "trt.IExecutionContext", n: int, *, x: int, y: int, x_next: int) -> None:
        t = self._times_d + 2 * n * self._row
        addresses = {"x_t": x, "y": y, "t": t, "dt": t + self._row, "x_next": x_next}
        known = all(context.set_tensor_address(name, address) for name, address in addresses.items())
        if not known or not context.execute_async_v3(int(self._streams.compute)):
            raise self._device.fail(f"TensorRT: {self._engine.log.error}")
