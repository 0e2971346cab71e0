"""The one configuration file of a console service: TOML, checked strictly."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from lfmri_runtime.console.settings import ConsoleSettings
from lfmri_runtime.decoding import Mismatch, decode
from lfmri_runtime.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: A configuration is a few kilobytes; more than this is not one.
MAX_BYTES = 1 << 20


def read_settings(path: Path) -> ConsoleSettings:
    """Read a configuration file; what it leaves out has its default. Not checked yet, as with `settings_from`.

    Raises:
        UsageError: unreadable, not TOML, an unknown key or a wrong type.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        document = tomllib.loads(content.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a configuration in TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML ({error}); expected tables such as [model]") from None
    return settings_from(document, where=str(path))


def settings_from(document: dict[str, Any], *, where: str) -> ConsoleSettings:
    """Lay plain values over the defaults; not checked yet, since the command line may still add to them.

    Raises:
        UsageError: an unknown key or a wrong type.
    """
    try:
        settings: ConsoleSettings = decode(
            ConsoleSettings, _over(dataclasses.asdict(ConsoleSettings()), document), where
        )
    except Mismatch as error:
        raise UsageError(str(error)) from None
    return settings


def _over(defaults: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Defaults replaced by what the document gives, table by table; tuples as the lists that `decode` takes."""
    merged = {**defaults, **document}
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(merged[key], dict):
            merged[key] = _over(default, merged[key])
        elif isinstance(merged[key], tuple):
            merged[key] = list(merged[key])
    return merged
