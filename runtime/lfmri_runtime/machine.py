"""What this machine is: what a choice of back end, a benchmark and an acceptance test hold for; read from files."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfmri_runtime.backends.tensorrt.cuda import Device

#: Libraries whose versions decide what the network computes, how fast, and what is usable at all.
BASE_LIBRARIES = ("lfmri", "numpy", "nibabel", "onnxruntime", "onnxruntime-gpu")
LIBRARIES = (*BASE_LIBRARIES, "openvino", "tensorrt", "tensorrt-rtx", "cuda-bindings")
#: Instruction sets that decide how fast a CPU convolves: of x86-64, and of Arm.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve")
PROC, DEV = Path("/proc"), Path("/dev")
#: Files of DEV without which CUDA finds no GPU: a card's, and a Jetson's.
GPU_FILES = ("nvidiactl", "nvidia[0-9]*", "nvmap")


def versions(backend: str | None = None) -> dict[str, str]:
    """Python and those of LIBRARIES that are installed; for one back end, the base's and its own."""
    own = [name for name in LIBRARIES if backend is None or name in BASE_LIBRARIES or name.startswith(backend)]
    found = {"python": platform.python_version()}
    for name in own:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu(proc: Path = PROC) -> dict[str, Any]:
    """Name, instruction sets of FEATURES, and the cores that this process may use."""
    entries: dict[str, str] = {}
    for line in _text(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    flags = (entries.get("flags") or entries.get("Features") or "").split()
    return {
        "architecture": platform.machine(),
        "name": entries.get("model name")
        or _text(proc / "device-tree" / "model").strip("\0\n")
        or platform.processor(),
        "features": [name for name in FEATURES if name in flags],
        "cores": usable_cores(),
    }


def gpus(proc: Path = PROC, *, opened: "Device | None" = None) -> list[str]:
    """Names of the NVIDIA GPUs and the driver's version; empty without a driver.

    Args:
        proc: the kernel's files, among them the driver's own; a Jetson's names no GPU there.
        opened: the GPU that is used, which tells its name itself; None reads all from the files.
    """
    release = re.search(r"\d+\.\d[\d.]*", _text(proc / "driver" / "nvidia" / "version"))
    driver = release.group() if release else "unknown"
    if opened is not None:
        about = f"compute capability {opened.compute_capability}, {opened.multiprocessors} multiprocessors"
        return [f"{opened.name}, {about} (driver {driver}, CUDA {opened.cuda_version})"]
    names = [
        line.partition(":")[2].strip()
        for path in sorted((proc / "driver" / "nvidia" / "gpus").glob("*/information"))
        for line in _text(path).splitlines()
        if line.startswith("Model")
    ]
    return [f"{name} (driver {driver})" for name in names]


def closed_gpu_files(dev: Path = DEV) -> list[str]:
    """Files of NVIDIA GPUs that are here and that this user may not open: a Jetson's belong to the group video."""
    found = (path for pattern in GPU_FILES for path in sorted(dev.glob(pattern)))
    return [str(path) for path in found if not os.access(path, os.R_OK | os.W_OK)]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib(proc: Path = PROC) -> float:
    """Memory of the machine, GiB; 0 where it is not told."""
    return round(_kib(proc / "meminfo", "MemTotal") / 2**20, 1)


def resident_mib(*, peak: bool = False, proc: Path = PROC) -> float:
    """Resident memory of this process, MiB, now or at most since it started."""
    return _kib(proc / "self" / "status", "VmHWM" if peak else "VmRSS") / 2**10


def identity(gpu: "Device | None" = None) -> dict[str, Any]:
    """The machine as far as it decides which back end is right and fast; `gpu` is as in `gpus`."""
    return {"system": platform.system(), "cpu": cpu(), "gpus": gpus(opened=gpu), "versions": versions()}


def _kib(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
