"""TensorRT 10, 11 and TensorRT-RTX in Python: their interface and rules, with ONNX Runtime as the arithmetic.

A class made here has only the members that the real one has in that version: those of the lists in `data`, which were
read from TensorRT 10.16 and 11.4, and those of the installed TensorRT-RTX.
"""

import json
import weakref
from enum import EnumMeta, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx

from .fake_cuda import FakeDriver, Work

DATA = Path(__file__).parent / "data"
APIS: dict[str, dict[str, Any]] = {n: json.loads((DATA / f"tensorrt_api_{n}.json").read_text()) for n in ("10", "11")}
VERSIONS = {"10": "10.3.0", "11": "11.4.0.106", "rtx": "1.7.1.116"}
#: In the list of 10.16, and not yet in 10.0, on which the engines must run too.
SINCE_10_1 = {"device_memory_size_v2", "set_device_memory"}
#: The lists leave it out.
UNLISTED = {"name"}
PLAN, WORKSPACE = b"fake plan\n", 4096


def members(version: str, kind: str) -> set[str]:
    """Public members of a class in a version; of one without a list of its own, those that TensorRT-RTX has."""
    api = APIS.get(version, {})
    if api and kind not in api["TOP"]:
        return set()
    if isinstance(api.get(kind), list):
        return set(api[kind]) | UNLISTED
    return {name for name in dir(getattr(tensorrt_rtx, kind, object)) if not name.startswith("_")}


class State:
    """What a test looks at, and where it makes the library fail.

    Attributes:
        driver: that the contexts put their work on.
        fail: called with the name of a call; True makes it report failure, by a None or a False.
        alive: engines and contexts that were not dropped.
        built: configurations that engines were built with.
        built_in: the CUDA contexts that were current meanwhile.
        compiled: shapes that TensorRT-RTX compiled kernels for.
        module: the library.
    """

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.fail = lambda name: False
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.built: list[Any] = []
        self.built_in: list[int] = []
        self.compiled: list[tuple[int, ...]] = []
        self.module: Any = None
        self._sessions: dict[bytes, onnxruntime.InferenceSession] = {}

    def session(self, model: bytes) -> onnxruntime.InferenceSession:
        if model not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self._sessions[model] = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return self._sessions[model]


def fake_tensorrt(driver: FakeDriver, version: str) -> Any:
    """Make the module: 10, 11 or rtx; its `state` is a `State`."""
    trt = ModuleType("tensorrt_rtx" if version == "rtx" else "tensorrt")
    state = State(driver)
    state.module = trt
    for kind in KINDS:
        known = members(version, kind.__name__) - (SINCE_10_1 if version == "10" else set())
        if known:
            setattr(trt, kind.__name__, _trimmed(kind, known, state))
    trt.__dict__.update(__version__=VERSIONS[version], nptype=lambda dtype: dtype, state=state)
    return trt


def _trimmed(kind: type, known: set[str], state: State) -> type:
    """The class with the members that it has in one version, for reading and for setting."""
    if isinstance(kind, EnumMeta):
        return IntEnum(kind.__name__, {name: value for name, value in kind.__members__.items() if name in known})

    def guard(self: Any, name: str, value: object) -> None:
        if not name.startswith("_") and name not in known and kind not in DERIVED:
            raise AttributeError(name)
        object.__setattr__(self, name, value)

    kept = {name: value for name, value in vars(kind).items() if name.startswith("_") or name in known}
    kept = {name: value for name, value in kept.items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, (), {**kept, "__setattr__": guard, "_state": state})


# Enumerations


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 15
    REQUIRE_USER_ALLOCATION = 24


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ComputeCapability(IntEnum):
    SM86 = 86
    SM89 = 89


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1


# Classes that ours are derived from


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def log(self, severity: int, text: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


DERIVED = (ILogger, IProgressMonitor)

# Building


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value

    @property
    def name(self) -> str:
        return self._value.name

    @property
    def dtype(self) -> Any:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self._value.type.tensor_type.elem_type)).type

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.dim_value or -1 for axis in self._value.type.tensor_type.shape.dim)


class INetworkDefinition:
    def __init__(self) -> None:
        self._model = b""

    @property
    def num_inputs(self) -> int:
        return len(onnx.load_from_string(self._model).graph.input)

    def get_input(self, index: int) -> ITensor:
        return ITensor(onnx.load_from_string(self._model).graph.input[index])


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._error = network, ""

    def parse(self, model: bytes) -> bool:
        try:
            self._state.session(model)
        except Exception as error:  # noqa: BLE001 - the library has a dozen classes
            self._error = str(error)
            return False
        self._network._model = model
        return True

    @property
    def num_errors(self) -> int:
        return int(bool(self._error))

    def get_error(self, index: int) -> Any:
        return type("Error", (), {"desc": lambda error, text=self._error: text})()


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        self._shapes[name] = (smallest, usual, largest)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return b"timings of " + self._state.driver.name.encode()


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags = {int(self._state.module.BuilderFlag.TF32)}
        self._profile: Any = None
        self._timings: Any = None
        self._targets: dict[int, int] = {}
        self.progress_monitor = None

    def set_flag(self, flag: int) -> None:
        self._flags.add(int(flag))

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(int(flag))

    def add_optimization_profile(self, profile: Any) -> int:
        self._profile = profile._shapes
        return 0

    def create_timing_cache(self, content: bytes) -> Any:
        cache = self._state.module.ITimingCache(content)
        return None if content == b"not timings" else cache

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        mine = cache._content in (b"", cache.serialize())
        self._timings = cache if mine else None
        return mine

    def get_timing_cache(self) -> Any:
        return self._timings

    def set_compute_capability(self, capability: int, index: int) -> bool:
        self._targets[index] = int(capability)
        return True


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Any:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self._state.module.INetworkDefinition()

    def create_builder_config(self) -> Any:
        return self._state.module.IBuilderConfig()

    def create_optimization_profile(self) -> Any:
        return self._state.module.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self._state.built.append(config)
        self._state.built_in.append(self._state.driver.context)
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing tactics", "Building engine", 4)
        going = all(monitor.step_complete("Timing tactics", step) for step in range(4))
        monitor.phase_finish("Timing tactics")
        going = going and monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        if not going or self._state.fail("build"):
            self._logger.log(ILogger.ERROR, "no tactic\nwas found")
            return None
        header = {
            "profile": config._profile,
            "host code": int(BuilderFlag.VERSION_COMPATIBLE) in config._flags,
        }
        return PLAN + json.dumps(header).encode() + b"\n" + network._model


# Running


class Runtime:
    def __init__(self, logger: Any) -> None:
        assert "cuInit" in self._state.driver.calls, "without CUDA the real one crashes"
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if self._state.fail("deserialize") or not plan.startswith(PLAN):
            self._logger.log(ILogger.ERROR, "bad magic\nnumber")
            return None
        header, model = plan.removeprefix(PLAN).split(b"\n", 1)
        settings = json.loads(header)
        if settings["host code"] and not self.engine_host_code_allowed:
            self._logger.log(ILogger.ERROR, "host code is not allowed")
            return None
        return self._state.module.ICudaEngine(settings["profile"], model)


class IRuntimeCache:
    """Of kernels that were compiled; the configuration points to it and does not keep it."""

    def __init__(self) -> None:
        self._shapes: list[list[int]] = []

    def _compile(self, shape: tuple[int, ...]) -> None:
        if list(shape) not in self._shapes:
            self._state.compiled.append(shape)
            self._shapes.append(list(shape))

    def serialize(self) -> bytes:
        assert self._state.driver.context, "the real one asks the current context for its GPU"
        return json.dumps({"gpu": self._state.driver.name, "shapes": self._shapes}).encode()

    def deserialize(self, content: bytes) -> bool:
        found = json.loads(content)
        mine = bool(found["gpu"] == self._state.driver.name)
        self._shapes = found["shapes"] if mine else []
        return mine


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy: Any = None
        self._cache: Any = lambda: None

    dynamic_shapes_kernel_specialization_strategy = None

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return self._state.module.IRuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = weakref.ref(cache)
        return True


class ICudaEngine:
    def __init__(self, profile: Any, model: bytes) -> None:
        graph = onnx.load_from_string(model).graph
        modes = self._state.module.TensorIOMode
        self._profile, self._model = profile, model
        self._tensors = [(ITensor(v), modes.INPUT) for v in graph.input]
        self._tensors += [(ITensor(v), modes.OUTPUT) for v in graph.output]
        self._state.alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def _named(self, name: str) -> Any:
        return next(entry for entry in self._tensors if entry[0].name == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index][0].name)

    def get_tensor_mode(self, name: str) -> Any:
        return self._named(name)[1]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._named(name)[0].dtype

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        return self._profile[name]

    @property
    def device_memory_size(self) -> int:
        return WORKSPACE

    @property
    def device_memory_size_v2(self) -> int:
        return WORKSPACE

    def create_runtime_config(self) -> Any:
        return self._state.module.IRuntimeConfig()

    def create_execution_context(self, settings: Any) -> Any:
        cache = None
        if isinstance(settings, getattr(self._state.module, "IRuntimeConfig", ())):
            lazy = settings.dynamic_shapes_kernel_specialization_strategy
            assert lazy == DynamicShapesKernelSpecializationStrategy.EAGER
            cache = settings._cache()
            assert cache is not None, "the real one reads freed memory"
            settings = settings._strategy
        assert settings == ExecutionContextAllocationStrategy.USER_MANAGED
        if self._state.fail("context"):
            return None
        return self._state.module.IExecutionContext(self, cache)


class IExecutionContext:
    def __init__(self, engine: Any, cache: Any) -> None:
        self._engine, self._cache = engine, cache
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._workspace = 0
        self._settled = False
        self._recording: Any = None
        self._state.alive.add(self)

    def _set_workspace(self, address: int) -> None:
        self._workspace = address

    device_memory = property(None, _set_workspace)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= WORKSPACE
        self._workspace = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine._profile[name]
        self._shapes[name] = shape
        self._settled = False
        fits = all(low <= n <= high for low, n, high in zip(smallest, shape, largest, strict=True))
        return fits and not self._state.fail("shape")

    def set_tensor_address(self, name: str, memory: int) -> bool:
        # A graph goes on living in the context that it was recorded from.
        assert self._recording is None or self._recording.captured is not None
        self._addresses[name] = memory
        return memory % 256 == 0 and not self._state.fail("address")

    def execute_async_v3(self, stream_handle: int) -> bool:
        driver = self._state.driver
        stream = driver.streams[stream_handle]
        if self._state.fail("execute") or (stream.captured is not None and not self._settled):
            return False
        if self._cache is not None:
            self._cache._compile(self._shapes["x_t"])
        self._settled = True
        self._recording = stream if stream.captured is not None else None
        shapes = {**self._shapes, "x_next": self._shapes["x_t"]}
        ranges = {name: (self._addresses[name], 4 * int(np.prod(shape))) for name, shape in shapes.items()}
        session = self._state.session(self._engine._model)

        def act() -> None:
            arrays = {n: driver.bytes_at(*ranges[n]).view(np.float32).reshape(s) for n, s in shapes.items()}
            target = arrays.pop("x_next")
            with np.errstate(all="ignore"):
                target[:] = session.run(None, arrays)[0]

        reads = [ranges[name] for name in self._shapes]
        driver.put(stream, Work(reads, [ranges["x_next"], (self._workspace, WORKSPACE)], act))
        return True


KINDS = (
    NetworkDefinitionCreationFlag, BuilderFlag, HardwareCompatibilityLevel, ExecutionContextAllocationStrategy,
    TensorIOMode, ComputeCapability, DynamicShapesKernelSpecializationStrategy, ILogger, IProgressMonitor, ITensor,
    INetworkDefinition, OnnxParser, IOptimizationProfile, ITimingCache, IBuilderConfig, Builder, Runtime,
    IRuntimeCache, IRuntimeConfig, ICudaEngine, IExecutionContext,
)  # fmt: skip
