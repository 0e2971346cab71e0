"""JSON or TOML values into dataclasses, strictly: no unknown key, no missing key, no wrong type."""

import dataclasses
import math
import types
import typing
from typing import Any


class Mismatch(ValueError):
    """A value that is not of the expected kind; the message says where, what was found and what was expected."""


def decode(kind: Any, value: Any, where: str) -> Any:
    """Build a dataclass, tuple, dict or scalar of type `kind` from plain values, strictly.

    Raises:
        Mismatch: naming the place, what was found and what was expected.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is types.UnionType:
        return None if value is None else decode(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        return _decode_number(value, where)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise Mismatch(f"{where} is {shorten(value)}; expected {getattr(kind, '__name__', kind)}")


def _decode_number(value: object, where: str) -> float:
    """Take a whole number for a float too, but neither a boolean nor what no finite float holds."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        return number
    raise Mismatch(f"{where} is {shorten(value)}; expected a finite number")


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    expected = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise Mismatch(f"{where} is {shorten(value)}; expected an object")
    for key in [*(k for k in value if k not in expected), *(k for k in expected if k not in value)]:
        state = "is not known" if key in value else "is missing"
        raise Mismatch(f"{where}: the key {shorten(key)} {state}; expected {', '.join(expected)}")
    return kind(**{key: decode(expected[key], item, f"{where}.{key}") for key, item in value.items()})


def shorten(value: object) -> str:
    """A value's text, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
