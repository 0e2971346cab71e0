"""`lfmri export --trt-rtx`: engines for RTX cards, by TensorRT-RTX, made ahead of time on a machine without a GPU."""

import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfmri_export.building import Progress, build_plan, check_profile
from lfmri_export.store import store_engine
from lfmri_runtime.backends.tensorrt.identity import Identity, Profile
from lfmri_runtime.backends.tensorrt.versions import RTX, load
from lfmri_runtime.bundle import STEP, Bundle
from lfmri_runtime.errors import UsageError

if TYPE_CHECKING:
    import tensorrt_rtx as trt

#: Consoles' cards since 2020: GeForce RTX 30, 40 and 50 and their workstation sisters.
TARGETS = ("SM86", "SM89", "SM120")


def export_rtx_engines(
    bundle: Bundle,
    profile: Profile,
    *,
    targets: Sequence[str] = TARGETS,
    cache: Path | None = None,
    rebuild: bool = False,
    say: Callable[[str], None],
    progress: Progress,
) -> Iterator[tuple[Path, bool]]:
    """Build a bundle's engine for each target; TensorRT-RTX compiles its kernels on the card that loads it.

    Args:
        bundle: verified.
        profile: the shapes that it shall take.
        targets: compute capabilities by the library's names, as SM86.
        cache: None takes the user's cache.
        rebuild: make it even where there is one.
        say: called with a line before each engine.
        progress: called with (parts done, parts in all).

    Yields:
        each engine's path, and whether it was made now.

    Raises:
        BackendMissing: TensorRT-RTX is not installed.
        UsageError: it has no such target, or the profile leaves out slices that the engine's checks need.
        BundleRefused: it refuses the graph, or there is an engine and it is damaged.
        TryAgainLater: another process makes it now, or the cache cannot be written.
    """
    check_profile(profile, bundle)
    library = load(RTX)
    known = [name for name in library.ComputeCapability.__members__ if name.startswith("SM")]
    for target in targets:
        if target not in known:
            raise UsageError(
                f"--target is {target!r}; TensorRT-RTX {library.__version__} builds for {', '.join(known)}"
            )
    for target in targets:
        yield _export(library, bundle, profile, target, cache=cache, rebuild=rebuild, say=say, progress=progress)


def _export(
    library: Any,
    bundle: Bundle,
    profile: Profile,
    target: str,
    *,
    cache: Path | None,
    rebuild: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[Path, bool]:
    digits = target.removeprefix("SM")
    identity = Identity(
        library=RTX,
        library_version=library.__version__,
        platform=platform.machine(),
        bundle=bundle.sha256,
        onnx=bundle.contract.files[STEP],
        precision=bundle.contract.precision,
        compute_capability=f"{digits[:-1]}.{digits[-1]}",
        gpu=None,
        multiprocessors=None,
        profile=profile,
        version_compatible=False,
        hardware_compatible=False,
    )

    def configure(config: "trt.IBuilderConfig") -> None:
        # Without it the engine may allocate while it runs, which no CUDA graph can hold.
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, target), 0)

    def build() -> bytes:
        say(f"building an engine with TensorRT-RTX {library.__version__} for {target}")
        return build_plan(library, bundle, profile, configure=configure, progress=progress)[0]

    return store_engine(bundle, identity, build, cache=cache, rebuild=rebuild)
