"""TensorRT and TensorRT-RTX on an NVIDIA GPU: engines from `lfmri export --trt`, the Euler loop as one CUDA graph."""

from lfmri_runtime.backends.tensorrt.step import TensorRtStep

#: What `lfmri_runtime.backends.open_backend` calls.
open_step = TensorRtStep

__all__ = ["TensorRtStep", "open_step"]
