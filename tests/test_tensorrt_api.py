"""Every member of TensorRT and of CUDA's driver that our modules use exists in all versions that they run on."""

from pathlib import Path

import pytest

from .tensorrt_members import find_members

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "runtime" / "lfmri_runtime" / "backends" / "tensorrt"
EXPORT = ROOT / "export" / "lfmri_export"
MODULES = (*sorted(RUNTIME.glob("*.py")), *(EXPORT / f"{name}.py" for name in ("building", "engine", "rtx", "store")))
#: Some of what the check must have seen; one that saw nothing would pass too.
SEEN = {
    "Builder.build_serialized_network", "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.TF32",
    "IBuilderConfig.progress_monitor", "IBuilderConfig.set_timing_cache", "IOptimizationProfile.set_shape",
    "ITimingCache.serialize", "OnnxParser.parse", "ParserError.desc", "ITensor.dtype",
    "Runtime.deserialize_cuda_engine",
    "Runtime.engine_host_code_allowed", "ICudaEngine.device_memory_size", "ICudaEngine.device_memory_size_v2",
    "ICudaEngine.get_tensor_profile_shape", "TensorIOMode.INPUT", "IExecutionContext.set_device_memory",
    "IExecutionContext.device_memory", "IExecutionContext.set_tensor_address", "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_input_shape", "DynamicShapesKernelSpecializationStrategy.EAGER", "ILogger.ERROR",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", "HardwareCompatibilityLevel.AMPERE_PLUS",
    "ExecutionContextAllocationStrategy.USER_MANAGED", "IBuilderConfig.num_compute_capabilities",
    "BuilderFlag.REQUIRE_USER_ALLOCATION", "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache.serialize", "IRuntimeCache.deserialize",
}  # fmt: skip
CALLED = {
    "cuInit", "cuMemAlloc", "cuMemcpyHtoDAsync", "cuGraphInstantiate", "cuGraphLaunch", "cuStreamWaitEvent",
    "cuMemGetInfo", "cuDriverGetVersion",
}  # fmt: skip


def test_every_member_exists_in_every_version() -> None:
    found = find_members((path.name, path.read_text()) for path in MODULES)
    assert found.wrong == []
    assert found.used >= SEEN, SEEN - found.used
    assert found.called >= CALLED, CALLED - found.called


def test_no_module_of_tensorrt_is_left_out() -> None:
    named = {
        path
        for part in ("lfmri", "runtime", "export", "trainer")
        for path in (ROOT / part).rglob("*.py")
        if any(word in path.read_text() for word in ("trt.", "tensorrt_rtx", "cuda.bindings"))
    }
    assert named - set(MODULES) <= {ROOT / "lfmri" / "commands" / "export.py"}


BUILD = """
def build(trt: Any, config: "trt.IBuilderConfig", engine: "trt.ICudaEngine") -> None:
    builder = trt.Builder(log)
    {line}
"""


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", ["BuilderFlag.FP16 is not in 11", "BuilderFlag.FP16 is not in rtx"]),
        ("if builder.platform_has_fast_fp16: pass", ["Builder.platform_has_fast_fp16 is not in 11", "rtx"]),
        ("size = engine.device_memory_size", ["ICudaEngine.device_memory_size is not in 11", "rtx"]),
        ("size = engine.device_memory_size_v2", ["ICudaEngine.device_memory_size_v2 is not in 10"]),
        ("x = [n.dynamic_range for n in [builder.create_network(0).get_input(i) for i in y]]", ["ITensor.dyn", "rtx"]),
        ("trt.IInt8Calibrator()", ["trt.IInt8Calibrator is not in 11", "rtx"]),
        ("trt.ComputeCapability.SM86", ["trt.ComputeCapability is not in 10", "11", "ComputeCap", "ComputeCap"]),
        ("if is_rtx(trt): trt.ComputeCapability.SM86", []),
        ("if is_modern(trt): engine.device_memory_size_v2", []),
        ("builder.get_plugin_registry().all_creators", ["all_creators of the unknown result of Builder.get_plugin"]),
        ("with suppress(KeyError): builder.max_batch_size = 1", ["Builder.max_batch_size is not in"] * 3),
        ("self._cuda.cuMemAlloc(1, 2)", ["cuMemAlloc with 2 arguments is not in cuda-bindings"]),
        ("self._cuda.cuMemAllocc(1)", ["driver.cuMemAllocc is not in cuda-bindings"]),
        ("codes = self._cuda.CUresult; codes.CUDA_ERROR_NO_LUCK", ["CUresult.CUDA_ERROR_NO_LUCK is not in cuda-bind"]),
    ],
)
def test_the_check_sees_what_a_version_lacks(line: str, wrong: list[str]) -> None:
    found = find_members([("some.py", BUILD.format(line=line))]).wrong
    assert len(found) == len(wrong), found
    for one, part in zip(found, wrong, strict=True):
        assert part in one
