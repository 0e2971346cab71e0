"""`lfmri export --trt`: an engine for the GPU of this machine, by TensorRT."""

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lfmri_export.building import Progress, build_plan, check_profile
from lfmri_export.store import store_engine
from lfmri_runtime.backends.tensorrt.cuda import Device
from lfmri_runtime.backends.tensorrt.identity import DIGITS, Identity, Profile
from lfmri_runtime.backends.tensorrt.versions import TENSORRT, load
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.cache import cache_folder
from lfmri_runtime.files import atomic_write

if TYPE_CHECKING:
    import tensorrt as trt

#: A file of timings has some hundred kilobytes; more than this is not read (assumed).
MAX_TIMINGS_BYTES = 1 << 26


def export_engine(
    bundle: Bundle,
    profile: Profile,
    *,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    cache: Path | None = None,
    rebuild: bool = False,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[Path, bool]:
    """Build a bundle's engine on the GPU that will run it.

    Args:
        bundle: verified.
        profile: the shapes that it shall take.
        version_compatible: runs on later versions of TensorRT too, somewhat slower and larger.
        hardware_compatible: runs on every GPU from compute capability 8.0, slower; not on a Jetson.
        cache: None takes the user's cache.
        rebuild: make it even where there is one.
        say: called with a line before the work begins.
        progress: called with (parts done, parts in all).

    Returns:
        the engine's path, and whether it was made now.

    Raises:
        UsageError: the profile leaves out slices that the engine's checks need.
        BackendMissing: no GPU, no driver or no TensorRT.
        BundleRefused: TensorRT refuses the graph, or there is an engine and it is damaged.
        TryAgainLater: another process makes it now, or the cache cannot be written.
    """
    check_profile(profile, bundle)
    device = Device()
    library = load(TENSORRT)
    identity = Identity(
        library=TENSORRT,
        library_version=library.__version__,
        platform=platform.machine(),
        bundle=bundle.sha256,
        onnx=bundle.contract.files[STEP],
        precision=bundle.contract.precision,
        compute_capability=device.compute_capability,
        gpu=device.name,
        multiprocessors=device.multiprocessors,
        profile=profile,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
    )
    timings = _timings(identity, cache)

    def configure(config: "trt.IBuilderConfig") -> None:
        if version_compatible:
            config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        _use_timings(config, timings)

    def build() -> bytes:
        say(f"building an engine with TensorRT {library.__version__} for {device.name}; a Jetson takes some minutes")
        plan, config = build_plan(library, bundle, profile, configure=configure, progress=progress, use=device.use)
        _keep_timings(config, timings)
        return plan

    return store_engine(bundle, identity, build, cache=cache, rebuild=rebuild)


def _timings(identity: Identity, cache: Path | None) -> Path:
    """The file of kernel timings, which hold for one library version, platform and GPU."""
    gpu = (identity.compute_capability, identity.gpu, identity.multiprocessors)
    key = " ".join(map(str, (identity.library_version, identity.platform, *gpu)))
    name = f"timings-{hashlib.sha256(key.encode()).hexdigest()[:DIGITS]}.cache"
    return (cache_folder() if cache is None else cache) / "engines" / name


def _use_timings(config: "trt.IBuilderConfig", path: Path) -> None:
    """Begin with the timings of earlier builds; the library checks that they are its own, else it begins anew."""
    small = path.is_file() and path.stat().st_size <= MAX_TIMINGS_BYTES
    for content in (path.read_bytes() if small else b"", b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
            return


def _keep_timings(config: "trt.IBuilderConfig", path: Path) -> None:
    timings = config.get_timing_cache()
    with atomic_write(path) as temporary:
        temporary.write_bytes(bytes(timings.serialize()))
