"""What is here, what is usable, and for everything that is not: the reason and the line that mends it."""

import ctypes
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lfmri_runtime.backends import BACKENDS, open_backend, precisions
from lfmri_runtime.bundle import Bundle, open_bundle
from lfmri_runtime.cache import cache_folder
from lfmri_runtime.errors import LfmriError
from lfmri_runtime.machine import closed_gpu_files, cpu, gpus, memory_gib

#: A volume of 256^3 voxels takes less than this, GiB, measured on the reference back end.
ENOUGH_MEMORY = 2.0
#: What each extra brings, by the package that shows that it is there.
EXTRAS = {
    "evaluate": ("scikit-image", "scores, pages and the whole of lfmri verify"),
    "openvino": ("openvino", "the openvino back end"),
    "trt": ("cuda-bindings", "the tensorrt back end"),
    "dicom": ("pynetdicom", "DICOM in and out"),
    "mrd": ("prometheus-client", "MRD streams"),
    "train": ("lightning", "training"),
    "export": ("onnxscript", "export, and PyTorch in lfmri bench"),
}
#: The driver's library, and what it returns when all is well.
CUDA_LIBRARY = "libcuda.so.1"
CUDA_SUCCESS = 0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor.

    Attributes:
        subject: what was looked at.
        usable: whether it can be used here.
        found: what is there, or why it is not usable.
        mend: the line that mends it; empty where nothing has to be, or can be.
    """

    subject: str
    usable: bool
    found: str
    mend: str = ""


def examine(path: Path | None = None, *, threads: int = 0) -> list[Finding]:
    """Look at the machine, the cache, a bundle, every back end and every extra; changes nothing and never fails.

    Args:
        path: of the bundle; None takes the built-in one.
        threads: for opening the back ends.
    """
    findings = [*_machine(), _driver(), _cache()]
    bundle: Bundle | None = None
    try:
        bundle = open_bundle(path)
        contract = bundle.contract
        found = f"{contract.name} {contract.version}, {bundle.sha256[:16]}"
        findings.append(Finding(subject="bundle", usable=True, found=found))
    except LfmriError as error:
        findings.append(_split("bundle", str(error)))
    if bundle is not None:
        findings += [_backend(bundle, name, p, threads) for name in BACKENDS for p in precisions(name, bundle)]
    return [*findings, *_extras()]


def _machine() -> Iterator[Finding]:
    processor = cpu()
    features = " ".join(processor["features"]) or "none that matters"
    found = f"{processor['name']} ({processor['architecture']}), {processor['cores']} cores, {features}"
    yield Finding(subject="CPU", usable=True, found=found)
    memory = memory_gib()
    mend = "" if memory >= ENOUGH_MEMORY else "crop large scans, or add memory"
    yield Finding(
        subject="memory", usable=not mend, found=f"{memory} GiB of {ENOUGH_MEMORY} that 256^3 voxels need", mend=mend
    )
    yield Finding(
        subject="system",
        usable=True,
        found=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )


def _driver() -> Finding:
    """Ask the CUDA driver itself; nothing else may be loaded before it has answered."""
    names = ", ".join(gpus())
    try:
        driver = ctypes.CDLL(CUDA_LIBRARY)
    except OSError:
        hint = "" if shutil.which("nvidia-smi") is None else " although nvidia-smi is"
        mend = "with an NVIDIA GPU: install its driver (in a container: start it with --gpus all)"
        return Finding(subject="CUDA driver", usable=False, found=f"{CUDA_LIBRARY} is not here{hint}", mend=mend)
    code = int(driver.cuInit(0))
    if code != CUDA_SUCCESS:
        mend = "run nvidia-smi, then mend the driver as it says; after an update of the driver restart the machine"
        if closed := closed_gpu_files():
            mend = f"let this user open {closed[0]}: on a Jetson sudo usermod -aG video $USER, then log in again"
        return Finding(
            subject="CUDA driver", usable=False, found=f"cuInit gives error {code} {names}".strip(), mend=mend
        )
    count, number = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuDriverGetVersion(ctypes.byref(number))
    cuda = f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    return Finding(subject="CUDA driver", usable=count.value > 0, found=f"{cuda}, {count.value} GPUs {names}".strip())


def _cache() -> Finding:
    folder = cache_folder()
    probe = folder
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    if probe.is_dir() and os.access(probe, os.W_OK | os.X_OK):
        return Finding(subject="cache", usable=True, found=str(folder))
    return Finding(
        subject="cache",
        usable=False,
        found=f"{folder} cannot be written",
        mend="export XDG_CACHE_HOME=/a/writable/folder",
    )


def _backend(bundle: Bundle, name: str, precision: str, threads: int) -> Finding:
    subject = f"back end {name}, {precision}"
    try:
        step = open_backend(bundle, name, precision=precision, threads=threads)
    except LfmriError as error:
        return _split(subject, str(error))
    except Exception as error:  # noqa: BLE001 - a broken library is a finding, not a crash
        return Finding(subject=subject, usable=False, found=" ".join(str(error).split()), mend="install it again")
    found = step.provider
    step.close()
    return Finding(subject=subject, usable=True, found=found)


def _extras() -> Iterator[Finding]:
    for extra, (package, what) in EXTRAS.items():
        try:
            yield Finding(subject=f"extra {extra}", usable=True, found=f"{package} {version(package)}: {what}")
        except PackageNotFoundError:
            mend = f"pip install 'lfmri[{extra}]'"
            yield Finding(subject=f"extra {extra}", usable=False, found=f"no {package}: no {what}", mend=mend)


def _split(subject: str, message: str) -> Finding:
    """An error's one line ends in what to do: after its last semicolon or colon with a space."""
    cut = max(message.rfind(mark) for mark in ("; ", ": "))
    if cut < 0:
        return Finding(subject=subject, usable=False, found=message)
    return Finding(subject=subject, usable=False, found=message[:cut], mend=message[cut + 2 :])
