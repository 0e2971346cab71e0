"""Opening an engine: the one in the cache whose identity is this machine's, its bytes hashed before they are loaded."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.identity import (
    MEND,
    Identity,
    Profile,
    Sidecar,
    engine_folder,
    read_sidecar,
)
from lfmri_runtime.backends.tensorrt.kernels import Kernels
from lfmri_runtime.backends.tensorrt.versions import RTX, TENSORRT, context_settings, create_log, load
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.errors import BackendMissing, BundleRefused, LfmriError

if TYPE_CHECKING:
    import tensorrt as trt

#: An engine of the built-in bundle has about 22 MB; more than this is refused before it is read (assumed).
MAX_PLAN_BYTES = 1 << 30
#: The least compute capability of an engine that is hardware compatible (TensorRT's AMPERE_PLUS).
AMPERE = (8, 0)
#: What to do about an engine that is whole but was made for something else.
REMAKE = "make one here with `lfmri export --trt`, or ahead of time with --trt-rtx"


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine that was loaded.

    Attributes:
        trt: the library that loaded it.
        engine: the library's own object.
        settings: that its contexts are made with.
        identity: what it was made of and for.
        log: keeps the library's last error.
        kernels: that the library compiled here; the settings point to them and do not hold them.
    """

    trt: Any
    engine: "trt.ICudaEngine"
    settings: Any
    identity: Identity
    log: Any
    kernels: Kernels | None = None


def open_engine(bundle: Bundle, device: Device, *, cache: Path | None = None) -> Engine:
    """Find the newest engine that was made from this bundle for this machine, and load it.

    Args:
        bundle: verified.
        device: CUDA, which has answered.
        cache: where `lfmri export --trt` put its engines; None takes the user's cache.

    Raises:
        BackendMissing: there is no engine, or no library that could make or load one.
        BundleRefused: none of the engines is this machine's, or the one that is was changed; names the field.
    """
    folder = engine_folder(bundle, cache)
    sidecars = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    refusals: list[LfmriError] = []
    for path in sidecars:
        try:
            sidecar = read_sidecar(path)
            library = load(sidecar.identity.library)
            check_identity(path, sidecar.identity, bundle, device, library)
        except (BundleRefused, BackendMissing) as refusal:
            refusals.append(refusal)
            continue
        return _load(path, sidecar, library, bundle)
    if refusals:
        raise refusals[0]
    _check_library()
    raise BackendMissing(f"{folder}: no TensorRT engine of this bundle; {REMAKE}")


def _check_library() -> None:
    """Look for a library where there is no engine that names one.

    Raises:
        BackendMissing: neither can be imported; says why.
    """
    try:
        load(TENSORRT)
    except BackendMissing as missing:
        try:
            load(RTX)
        except BackendMissing:
            raise BackendMissing(f"no {RTX}, and {missing}") from None


def check_identity(path: Path, found: Identity, bundle: Bundle, device: Device, library: Any) -> None:
    """Compare an engine's identity with this machine and bundle.

    Raises:
        BundleRefused: naming the first field that differs, what was found and what was expected.
    """
    version, capability = library.__version__, device.compute_capability
    later = found.version_compatible and _numbers(found.library_version) <= _numbers(version)
    ampere = found.hardware_compatible and _numbers(capability) >= AMPERE
    anywhere = ampere or found.gpu is None
    here = platform.machine()
    fields = (
        ("bundle", found.bundle, bundle.sha256, False),
        ("onnx", found.onnx, bundle.contract.files[STEP], False),
        ("precision", found.precision, bundle.contract.precision, False),
        ("library_version", found.library_version, version, later),
        ("platform", found.platform, here, False),
        ("compute_capability", found.compute_capability, capability, ampere),
        ("gpu", found.gpu, device.name, anywhere),
        ("multiprocessors", found.multiprocessors, device.multiprocessors, anywhere),
    )
    for field, value, expected, excused in fields:
        if value != expected and not excused:
            raise BundleRefused(f"{path}: the engine's {field} is {value}; expected {expected} here: {REMAKE}")


def read_plan(path: Path, sidecar: Sidecar) -> bytes:
    """Read an engine's bytes and check the very bytes that are returned.

    Args:
        path: of the sidecar.
        sidecar: its content.

    Raises:
        BundleRefused: the engine is missing, too large, or not the one that the sidecar describes.
    """
    plan = path.with_suffix(".plan")
    try:
        size = plan.stat().st_size
        if size > MAX_PLAN_BYTES:
            raise BundleRefused(f"{plan} has {size} bytes; expected at most {MAX_PLAN_BYTES}: {MEND}")
        content = plan.read_bytes()
    except OSError as error:
        raise BundleRefused(f"{plan}: {error.strerror}; {MEND}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sidecar.plan:
        raise BundleRefused(f"{plan} has changed: its sha256 is {found}, its sidecar says {sidecar.plan}; {MEND}")
    return content


def _load(path: Path, sidecar: Sidecar, library: Any, bundle: Bundle) -> Engine:
    content = read_plan(path, sidecar)
    log = create_log(library)
    runtime: trt.Runtime = library.Runtime(log)
    # A version-compatible engine carries the lean runtime that runs it as machine code; its hash was checked above.
    runtime.engine_host_code_allowed = sidecar.identity.version_compatible
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BundleRefused(f"{path.with_suffix('.plan')} cannot be loaded ({log.error}); {MEND}")
    _check_arrays(path, engine, library, bundle, sidecar.identity.profile)
    settings, cache = context_settings(library, engine)
    kernels = None if cache is None else Kernels(library, cache, path.with_suffix(".kernels"))
    return Engine(library, engine, settings, sidecar.identity, log, kernels)


def _check_arrays(path: Path, engine: "trt.ICudaEngine", library: Any, bundle: Bundle, profile: Profile) -> None:
    """Compare the engine's own arrays and shapes with the contract and the sidecar."""
    contract = bundle.contract
    modes = {library.TensorIOMode.INPUT: "input", library.TensorIOMode.OUTPUT: "output"}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        (name, modes.get(engine.get_tensor_mode(name)), library.nptype(engine.get_tensor_dtype(name)).__name__)
        for name in names
    }
    expected = {
        (spec.name, mode, spec.dtype)
        for mode, specs in (("input", contract.inputs), ("output", contract.outputs))
        for spec in specs
    }
    if found != expected:
        raise BundleRefused(f"{path}: the engine's arrays are {sorted(found)}; expected {sorted(expected)}: {MEND}")
    bounds = tuple(
        (shape[0], shape[2], shape[3])
        for shape in map(tuple, engine.get_tensor_profile_shape(contract.inputs[0].name, 0))
    )
    if bounds != (profile.smallest, profile.usual, profile.largest):
        raise BundleRefused(f"{path}: the engine takes the shapes {bounds}; its sidecar says {profile}: {MEND}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
