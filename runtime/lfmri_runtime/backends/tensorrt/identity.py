"""What an engine is and where it lies: its identity, the sidecar that holds it, the cache.

An engine is executable code made for one library, one GPU and one graph. All that it depends on is its identity; the
identity's hash is in the engine's name, and the hash of the engine's bytes is in the sidecar, so that no byte of either
can change unseen. The hashes find damage and mix-ups, not malice: whoever can write to the cache can forge both.

    <cache>/engines/<bundle's sha256, 16 digits>/<library>-<identity's sha256, 16 digits>.plan, .json, .lock
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfmri_runtime.bundle import Bundle
from lfmri_runtime.cache import cache_folder
from lfmri_runtime.contract import decode, render
from lfmri_runtime.decoding import shorten
from lfmri_runtime.errors import BundleRefused, UsageError

#: The schema of the sidecar that this version reads and writes.
SCHEMA = 2
#: Digits of a sha256 that names hold: 64 bits.
DIGITS = 16
#: A sidecar is under two kilobytes; more than this is not one.
MAX_SIDECAR_BYTES = 1 << 16
#: What to do about an engine that is damaged.
MEND = "make the engine again with `lfmri export --trt --rebuild` (or --trt-rtx)"

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes that an engine takes, each (batch, rows, columns).

    Attributes:
        smallest: of each axis.
        usual: what it is tuned for.
        largest: of each axis; the engine's memory follows from it.
    """

    smallest: Shape
    usual: Shape
    largest: Shape

    def covers(self, shape: Shape) -> bool:
        """Whether slices of this shape can be run."""
        return all(low <= n <= high for low, n, high in zip(self.smallest, shape, self.largest, strict=True))

    def __str__(self) -> str:
        return ",".join("x".join(map(str, shape)) for shape in (self.smallest, self.usual, self.largest))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that an engine depends on.

    Attributes:
        library: tensorrt or tensorrt_rtx.
        library_version: in full, as the library says.
        platform: of the machine that it was made on, as "aarch64"; it runs on no other.
        bundle: sha256 of the bundle's contract.
        onnx: sha256 of its step.onnx.
        precision: of the weights in it.
        compute_capability: of the GPU that it was made on or, ahead of time, for.
        gpu: its name; None for an engine that was made ahead of time.
        multiprocessors: of that GPU, since a Jetson's modules share one name; None where `gpu` is.
        profile: the shapes that it takes.
        version_compatible: runs on later versions of the library too.
        hardware_compatible: runs on every GPU from compute capability 8.0.
    """

    library: str
    library_version: str
    platform: str
    bundle: str
    onnx: str
    precision: str
    compute_capability: str
    gpu: str | None
    multiprocessors: int | None
    profile: Profile
    version_compatible: bool
    hardware_compatible: bool

    @property
    def name(self) -> str:
        """The engine's file name without its suffix."""
        return f"{self.library}-{hashlib.sha256(render(self).encode()).hexdigest()[:DIGITS]}"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The file beside an engine.

    Attributes:
        schema: version of this layout.
        identity: of the engine.
        plan: sha256 of the engine's bytes.
    """

    schema: int
    identity: Identity
    plan: str


def engine_folder(bundle: Bundle, cache: Path | None) -> Path:
    """Where the engines of a bundle lie.

    Args:
        bundle: verified.
        cache: None takes `cache_folder`.
    """
    return (cache_folder() if cache is None else cache) / "engines" / bundle.sha256[:DIGITS]


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar strictly: byte for byte what was written.

    Args:
        path: of the .json.

    Raises:
        BundleRefused: it cannot be read, is of another schema, or was changed.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_SIDECAR_BYTES + 1)
    except OSError as error:
        raise BundleRefused(f"{path}: {error.strerror}; {MEND}") from None
    try:
        document = _json(content)
        schema = document.get("schema") if isinstance(document, dict) else None
        sidecar: Sidecar | None = decode(Sidecar, document, path.name) if schema == SCHEMA else None
    except BundleRefused as error:
        raise BundleRefused(f"{path} cannot be read ({error}); {MEND}") from None
    if sidecar is None:
        raise BundleRefused(f"{path} has schema {shorten(schema)}; this lfmri reads schema {SCHEMA}: {MEND}")
    if render(sidecar).encode() != content or sidecar.identity.name != path.stem:
        raise BundleRefused(
            f"{path} was changed: its identity is that of {sidecar.identity.name}, its name says {path.stem}; {MEND}"
        )
    return sidecar


def parse_profile(text: str, *, multiple: int) -> Profile:
    """Read three shapes, BATCHxROWSxCOLUMNS, smallest, usual and largest, with commas between them.

    Args:
        text: as 1x8x8,2x192x192,4x384x384.
        multiple: that all sides must be of.

    Raises:
        UsageError: not three such shapes, or an axis that does not ascend.
    """
    try:
        shapes = [tuple(int(n) for n in part.split("x")) for part in text.split(",")]
        smallest, usual, largest = ((batch, rows, columns) for batch, rows, columns in shapes)
    except ValueError:
        shapes = []
    sides = [side for shape in shapes for side in shape[1:]]
    ascending = shapes and all(1 <= low <= mid <= high for low, mid, high in zip(*shapes, strict=True))
    if not ascending or any(side % multiple for side in sides):
        raise UsageError(
            f"--profile is {text!r}; expected the smallest, the usual and the largest BATCHxROWSxCOLUMNS, sides "
            f"multiples of {multiple}, as in 1x{multiple}x{multiple},2x192x192,4x384x384"
        )
    return Profile(smallest=smallest, usual=usual, largest=largest)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"not JSON: {error}") from None
