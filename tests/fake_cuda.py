"""A CUDA driver in NumPy, as hostile as the real one may be.

Work that is put on a stream is done as late as the rules allow: only when the host waits for it. A host that reuses a
buffer too early, or reads one too early, therefore gets wrong numbers. Two pieces of work that touch the same bytes
(one of them writing) without an event or a wait between them raise `Race`, whatever their order happened to be.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cuda.bindings import driver as real

Result = tuple[Any, ...]
Range = tuple[int, int]
OK = real.CUresult.CUDA_SUCCESS
#: Bytes of device memory.
MEMORY = 1 << 33
#: What may be called before a context is current.
WITHOUT_CONTEXT = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxGetCurrent", "cuCtxSetCurrent")
#: What frees, and does so even when it reports the error of a lost device.
RELEASES = (
    "cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy",
    "cuStreamEndCapture",
)  # fmt: skip


class Race(AssertionError):
    """Two pieces of work on the same bytes, with nothing that keeps their order."""


@dataclass(eq=False)
class Work:
    """What a stream does: reads and writes are (address, bytes)."""

    reads: list[Range]
    writes: list[Range]
    act: Callable[[], None]


@dataclass(eq=False)
class Stream:
    handle: int
    queue: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0
    #: What happens before the stream's next work: for each stream, how many of its pieces.
    clock: dict[int, int] = field(default_factory=dict)
    captured: list[Work] | None = None

    def __int__(self) -> int:
        return self.handle


@dataclass(eq=False)
class Event:
    stream: Stream | None = None
    mark: int = 0
    clock: dict[int, int] = field(default_factory=dict)


class FakeDriver:
    """The functions of `cuda.bindings.driver` that the back end calls, with their results' form.

    Attributes:
        calls: names of the functions that were called.
        fail: called with (name, number of the call, from 0); an error to return instead of working, or None.
        skip: likewise; True does nothing and reports success.
        leak: bytes of device memory that every launch of a graph loses.
    """

    CUresult = real.CUresult
    CUstream_flags = real.CUstream_flags
    CUevent_flags = real.CUevent_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode
    CUdevice_attribute = real.CUdevice_attribute

    def __init__(self) -> None:
        self.name, self.capability, self.multiprocessors = "Fake GPU", (8, 7), 16
        self.leak = self._lost = 0
        self.calls: list[str] = []
        self.fail: Callable[[str, int], Any] = lambda name, number: None
        self.skip: Callable[[str, int], bool] = lambda name, number: False
        self._current = threading.local()
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {}
        self.events: set[Event] = set()
        self.graphs: list[Any] = []
        self.launches = 0
        self._accesses: list[tuple[Range, bool, int, int]] = []
        self._host: dict[int, int] = {}
        self._freed: list[np.ndarray] = []
        self._next = 1 << 40

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return found

        def call(*arguments: Any) -> Result:
            assert self.context or name in WITHOUT_CONTEXT, f"{name} in a thread without a context"
            number = len(self.calls)
            self.calls.append(name)
            error = self.fail(name, number)
            if error is not None and name not in RELEASES:
                return (error, None)
            if self.skip(name, number):
                return (OK,)
            result: Result = found(*arguments)
            if error is not None and name == "cuStreamEndCapture":
                self.graphs.pop()
            return result if error is None else (error, *(None for _ in result[1:]))

        return call

    def left(self) -> list[str]:
        """What was not freed."""
        kinds = {
            "memory": self.memory, "pinned": self.pinned, "streams": self.streams, "events": self.events,
            "graphs": self.graphs,
        }  # fmt: skip
        return [name for name, things in kinds.items() if things]

    # The device

    def cuInit(self, flags: int) -> Result:  # noqa: N802
        return (OK,)

    def cuCtxGetCurrent(self) -> Result:  # noqa: N802
        return OK, real.CUcontext(self.context)

    @property
    def context(self) -> int:
        """Current in this thread; 0 is none."""
        return getattr(self._current, "context", 0)

    def cuCtxSetCurrent(self, context: Any) -> Result:  # noqa: N802
        self._current.context = int(context)
        return (OK,)

    def cuCtxGetDevice(self) -> Result:  # noqa: N802
        return OK, 0

    def cuDeviceGet(self, ordinal: int) -> Result:  # noqa: N802
        return OK, 0

    def cuDevicePrimaryCtxRetain(self, device: int) -> Result:  # noqa: N802
        return OK, real.CUcontext(99)

    def cuDeviceGetName(self, length: int, device: int) -> Result:  # noqa: N802
        return OK, self.name.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, kind: Any, device: int) -> Result:  # noqa: N802
        kinds = real.CUdevice_attribute
        major, minor = self.capability
        return OK, {
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: major,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: minor,
            kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: self.multiprocessors,
        }[kind]

    def cuDriverGetVersion(self) -> Result:  # noqa: N802
        return OK, 12060

    def cuMemGetInfo(self) -> Result:  # noqa: N802
        return OK, MEMORY - self._lost - sum(array.nbytes for array in self.memory.values()), MEMORY

    # Memory; new memory holds NaN

    def cuMemAlloc(self, size: int) -> Result:  # noqa: N802
        assert not any(stream.captured is not None for stream in self.streams.values())
        assert size > 0
        address, self._next = self._next, self._next + size + 512 - size % 256
        self.memory[address] = np.full(size, 0xFF, np.uint8)
        return OK, real.CUdeviceptr(address)

    def cuMemFree(self, address: int) -> Result:  # noqa: N802
        self._run_all()
        del self.memory[int(address)]
        return (OK,)

    def cuMemHostAlloc(self, size: int, flags: int) -> Result:  # noqa: N802
        array = np.full(size, 0xFF, np.uint8)
        self.pinned[array.ctypes.data] = array
        return OK, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> Result:  # noqa: N802
        self._run_all()
        self._freed.append(self.pinned.pop(address))  # kept, so that a late touch is wrong and not a crash
        self._freed[-1][:] = 0xFF
        return (OK,)

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """The bytes of a range, which must lie within one allocation, host or device."""
        for base, array in (*self.memory.items(), *self.pinned.items()):
            if base <= address and address + size <= base + array.nbytes:
                return array[address - base : address - base + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: Stream) -> Result:  # noqa: N802
        return self._copy(target, source, size, stream)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: Stream) -> Result:  # noqa: N802
        return self._copy(target, source, size, stream)

    def _copy(self, target: int, source: int, size: int, stream: Stream) -> Result:
        def act() -> None:
            self.bytes_at(target, size)[:] = self.bytes_at(source, size)

        self.put(stream, Work([(source, size)], [(target, size)], act))
        return (OK,)

    # Streams and events

    def CUstream(self, handle: int) -> Stream:  # noqa: N802
        return self.streams.setdefault(handle, Stream(handle))

    def cuStreamCreate(self, flags: int) -> Result:  # noqa: N802
        assert flags == real.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        self._next += 256
        return OK, self.CUstream(self._next)

    def cuStreamDestroy(self, stream: Stream) -> Result:  # noqa: N802
        self._run_all()
        del self.streams[stream.handle]
        return (OK,)

    def cuEventCreate(self, flags: int) -> Result:  # noqa: N802
        event = Event()
        self.events.add(event)
        return OK, event

    def cuEventDestroy(self, event: Event) -> Result:  # noqa: N802
        self.events.remove(event)
        return (OK,)

    def cuEventRecord(self, event: Event, stream: Stream) -> Result:  # noqa: N802
        assert event in self.events
        event.stream, event.mark, event.clock = stream, len(stream.queue), dict(stream.clock)
        return (OK,)

    def cuStreamWaitEvent(self, stream: Stream, event: Event, flags: int) -> Result:  # noqa: N802
        assert event in self.events
        other, mark = event.stream, event.mark
        if other is not None:
            stream.queue.append(lambda: self._run(other, mark))
            _join(stream.clock, event.clock)
        return (OK,)

    def cuEventSynchronize(self, event: Event) -> Result:  # noqa: N802
        if event.stream is not None:
            self._run(event.stream, event.mark)
            _join(self._host, event.clock)
        return (OK,)

    def cuStreamSynchronize(self, stream: Stream) -> Result:  # noqa: N802
        assert stream.captured is None
        self._run(stream, len(stream.queue))
        _join(self._host, stream.clock)
        return (OK,)

    def put(self, stream: Stream, work: Work) -> None:
        """Put work on a stream, or into the graph that is captured from it."""
        if stream.captured is not None:
            stream.captured.append(work)
            return
        _join(stream.clock, self._host)
        # What the host has waited for comes before all that follows.
        self._accesses = [access for access in self._accesses if access[3] > self._host.get(access[2], 0)]
        number = stream.clock.get(stream.handle, 0) + 1
        for kind, ranges in ((False, work.reads), (True, work.writes)):
            for found in ranges:
                self.bytes_at(*found)
                self._check_race(found, writes=kind, clock=stream.clock)
                self._accesses.append((found, kind, stream.handle, number))
        stream.clock[stream.handle] = number
        stream.queue.append(work.act)

    def _check_race(self, found: Range, *, writes: bool, clock: dict[int, int]) -> None:
        for other, wrote, stream, number in self._accesses:
            overlap = found[0] < other[0] + other[1] and other[0] < found[0] + found[1]
            if overlap and (wrote or writes) and clock.get(stream, 0) < number:
                raise Race(f"{found} is touched by two streams with nothing between them")

    def _run(self, stream: Stream, mark: int) -> None:
        while stream.done < mark:
            stream.done += 1
            stream.queue[stream.done - 1]()

    def _run_all(self) -> None:
        for stream in list(self.streams.values()):
            self._run(stream, len(stream.queue))
            _join(self._host, stream.clock)

    # Graphs

    def cuStreamBeginCapture(self, stream: Stream, mode: Any) -> Result:  # noqa: N802
        assert mode == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        stream.captured = []
        return (OK,)

    def cuStreamEndCapture(self, stream: Stream) -> Result:  # noqa: N802
        graph, stream.captured = stream.captured, None
        self.graphs.append(graph)
        return OK, graph

    def cuGraphInstantiate(self, graph: list[Work], flags: int) -> Result:  # noqa: N802
        launchable = tuple(graph)
        self.graphs.append(launchable)
        return OK, launchable

    def cuGraphDestroy(self, graph: list[Work]) -> Result:  # noqa: N802
        self.graphs = [other for other in self.graphs if other is not graph]
        return (OK,)

    cuGraphExecDestroy = cuGraphDestroy  # noqa: N815

    def cuGraphLaunch(self, graph: tuple[Work, ...], stream: Stream) -> Result:  # noqa: N802
        assert any(graph is other for other in self.graphs)
        self.launches += 1
        self._lost += self.leak
        for work in graph:
            self.put(stream, work)
        return (OK,)


#: Handle of the legacy default stream.
DEFAULT_STREAM = 1


class FakeArray:
    """An array on the fake GPU that somebody else made, written by a stream of their own.

    Args:
        driver: of the GPU.
        values: of the array.
        stream: that it is written on, as late as may be; None is the default stream, which nobody names.
        changes: to the interface; version 2 has no word for a stream.
    """

    def __init__(self, driver: FakeDriver, values: np.ndarray, *, stream: int | None = None, **changes: Any) -> None:
        self.values = np.ascontiguousarray(values)
        self._driver = driver
        self.address = int(driver.cuMemAlloc(self.values.nbytes)[1])
        self.shape = values.shape
        size = self.values.nbytes

        def act() -> None:
            driver.bytes_at(self.address, size)[:] = self.values.view(np.uint8).ravel()

        writer = driver.CUstream(DEFAULT_STREAM if stream is None else stream)
        driver.put(writer, Work([], [(self.address, size)], act))
        self.__cuda_array_interface__ = {
            "shape": values.shape, "typestr": values.dtype.str, "data": (self.address, False), "version": 3,
            "strides": None, "stream": stream, **changes,
        }  # fmt: skip
        if changes.get("version") == 2:
            del self.__cuda_array_interface__["stream"]

    def free(self) -> None:
        self._driver.cuMemFree(self.address)


def _join(clock: dict[int, int], other: dict[int, int]) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)
