"""Importing the parts that need an extra, with a clear error where it is not installed."""

from importlib import import_module
from types import ModuleType

from lfmri_runtime.errors import missing_extra


def require(module: str, *, extra: str) -> ModuleType:
    """Import one of our modules that needs an extra.

    Raises:
        BackendMissing: a package of the extra is not installed; names the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lfmri"):
            raise
        raise missing_extra(extra, error.name.partition(".")[0]) from None
