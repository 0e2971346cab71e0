"""Engines in the cache: made once, under a lock, whole or not at all."""

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lfmri_runtime.backends.tensorrt.engine import read_plan
from lfmri_runtime.backends.tensorrt.identity import SCHEMA, Identity, Sidecar, engine_folder, read_sidecar
from lfmri_runtime.bundle import Bundle
from lfmri_runtime.contract import render
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.files import atomic_write, check_writable, write_text


def store_engine(
    bundle: Bundle, identity: Identity, build: Callable[[], bytes], *, cache: Path | None, rebuild: bool
) -> tuple[Path, bool]:
    """Give the engine of this identity, made now where there is none.

    Args:
        bundle: that it is made from.
        identity: of the engine.
        build: makes its bytes.
        cache: None takes the user's cache.
        rebuild: make it even where there is one.

    Returns:
        its path, and whether it was made now.

    Raises:
        BundleRefused: there is one, and it is damaged; --rebuild makes it again.
        TryAgainLater: another process makes it now, or the cache cannot be written.
    """
    folder = engine_folder(bundle, cache)
    plan, sidecar = (folder / f"{identity.name}.{suffix}" for suffix in ("plan", "json"))
    check_writable(plan)
    with _lock(folder / f"{identity.name}.lock"):
        if not rebuild and (sidecar.exists() or plan.exists()):
            read_plan(sidecar, read_sidecar(sidecar))
            return plan, False
        content = build()
        sidecar.unlink(missing_ok=True)  # an engine without its sidecar is never loaded
        with atomic_write(plan) as temporary:
            temporary.write_bytes(content)
        write_text(sidecar, render(Sidecar(schema=SCHEMA, identity=identity, plan=hashlib.sha256(content).hexdigest())))
    return plan, True


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends; the empty file stays."""
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgainLater(f"{path}: another process makes this engine now; wait until it is done") from None
        yield
