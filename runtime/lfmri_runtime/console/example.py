"""An example configuration that names every setting, made from the settings themselves so that it cannot drift."""

import dataclasses
import json
import re
import textwrap
import typing
from typing import Any

from lfmri_runtime.console.settings import ConsoleSettings

HEADING = """\
# Configuration of `lfmri serve`. Every setting stands here with its default: take away the # before what you change.
# The service may write below /var/lib/lfmri, /var/cache/lfmri and /var/log/lfmri; for a folder elsewhere type
# `systemctl edit lfmri` and add ReadWritePaths= under [Service].
"""
WIDTH = 100
#: An attribute in a docstring: its name and the first line of what it is.
_ATTRIBUTE = re.compile(r"(\w+): (.*)")


def example_configuration() -> str:
    """TOML with every key as a comment that gives its default; what it means stands above it."""
    tables = typing.get_type_hints(ConsoleSettings)
    return "\n".join(_table(name, kind) for name, kind in tables.items())


def _table(name: str, kind: Any) -> str:
    meanings = attributes(kind)
    defaults = kind()
    lines = [f"# {summary(kind)}", f"[{name}]"]
    for field in dataclasses.fields(kind):
        lines += textwrap.wrap(meanings[field.name], WIDTH, initial_indent="# ", subsequent_indent="# ")
        item = _item_of(typing.get_type_hints(kind)[field.name])
        if item is not None:
            lines.append(f"# Each is {{ {', '.join(f'{key} = ...' for key in attributes(item))} }}.")
        lines.append(f"# {field.name} = {_plain(getattr(defaults, field.name))}")
    return "\n".join(lines) + "\n"


def _item_of(kind: Any) -> Any:
    """The dataclass that a tuple holds; None for everything else."""
    inner = typing.get_args(kind)[:1]
    return inner[0] if inner and dataclasses.is_dataclass(inner[0]) else None


def _plain(value: Any) -> str:
    """A default as TOML; JSON writes texts, numbers, booleans and lists the same way."""
    return json.dumps(value, ensure_ascii=False)


def summary(kind: Any) -> str:
    """First paragraph of a docstring on one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def attributes(kind: Any) -> dict[str, str]:
    """What each attribute means, by the `Attributes` section of a dataclass's docstring."""
    found: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent((kind.__doc__ or "").partition("Attributes:\n")[2]).splitlines():
        match = _ATTRIBUTE.match(line)
        if match is not None:
            name = match[1]
        if name:
            found[name] = f"{found[name]} {line.strip()}".strip() if match is None else match[2]
    return found
