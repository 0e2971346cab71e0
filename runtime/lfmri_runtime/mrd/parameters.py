"""What a client asks for: from the configuration, the XML header's user parameters and the JSON text; the later wins.

Names that are not ours are the scanner's own and passed over; a value of ours that makes no sense is refused.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lfmri_runtime.enhancer import THICK_AXES
from lfmri_runtime.errors import UsageError
from lfmri_runtime.mrd import xml

#: Elements of the XML header's <userParameters> that can hold one of ours.
USER_PARAMETERS = ("userParameterLong", "userParameterDouble", "userParameterString")
_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """One session's parameters; names are spelled as clients send them, in any case.

    Attributes:
        steps: Euler steps; 0 takes the configured number.
        samples: draws to average; 0 takes the configured number.
        seed: of the noise; -1 takes the configured one.
        sendOriginal: whether the originals go back too, as they came.
        uncertainty: whether the standard deviation over samples leaves as a series of its own; the configuration can
            ask for it too.
        thickAxis: auto, R, A, S or none.
        voxelSize: along x, y and slices, mm, such as "1.6 1.6 5"; empty reads it from the XML header and the positions.
    """

    steps: int = 0
    samples: int = 0
    seed: int = -1
    sendOriginal: bool = False  # noqa: N815 - the name on the wire
    uncertainty: bool = False
    thickAxis: str = "auto"  # noqa: N815 - the name on the wire
    voxelSize: str = ""  # noqa: N815 - the name on the wire

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """`voxelSize` as numbers; None where it is empty.

        Raises:
            UsageError: not three positive numbers.
        """
        words = re.findall(r"[^\s,;x]+", self.voxelSize)
        if not words:
            return None
        try:
            sizes = list(map(float, words))
        except ValueError:
            sizes = []
        if len(sizes) != 3 or not all(0 < size < float("inf") for size in sizes):
            raise UsageError(f"voxelSize is {self.voxelSize[:40]!r}; expected three sizes in mm, such as 1.6 1.6 5")
        return sizes[0], sizes[1], sizes[2]


_DEFAULTS: dict[str, Any] = dataclasses.asdict(Parameters())
_NAMES = {name.lower(): name for name in _DEFAULTS}


def updated(parameters: Parameters, given: Iterable[tuple[str, Any]]) -> Parameters:
    """Parameters with what a client gave laid over them.

    Args:
        parameters: so far.
        given: names and values; values as text or as JSON's own types.

    Raises:
        UsageError: a value of ours that is not of its kind.
    """
    changes: dict[str, Any] = {}
    for said, value in given:
        name = _NAMES.get(said.strip().lower())
        if name is not None:
            changes[name] = _converted(name, type(_DEFAULTS[name]), value)
    result = dataclasses.replace(parameters, **changes)
    result.voxel_size  # noqa: B018 - checks it now, not when the scan is there
    return result


def from_text(text: str) -> list[tuple[str, Any]]:
    """Parameters in a configuration's text or name: a JSON object, or words such as `steps=5`; XML has none of ours."""
    return (
        []
        if text.lstrip().startswith("<")
        else from_json(text) or [(name, value) for name, value in re.findall(r"(\w+)=([^\s,;]+)", text)]
    )


def from_json(text: str) -> list[tuple[str, Any]]:
    """Parameters in a JSON text, {"version": ..., "parameters": {...}} or the inner object alone; others have none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if isinstance(document, dict):
        document = document.get("parameters", document)
    return list(document.items()) if isinstance(document, dict) else []


def from_header(text: str) -> list[tuple[str, Any]]:
    """User parameters in the XML header; none where it is not XML."""
    root = xml.parse(text)
    return [] if root is None else list(xml.named_values(root, USER_PARAMETERS))


def _converted(name: str, kind: type, value: object) -> Any:
    said = str(value).strip()
    try:
        if kind is bool:
            return _YES_NO[said.lower()]
        if kind is int:
            number = float(said)
            if not number.is_integer():
                raise ValueError
            return int(number)
        if name == "thickAxis":
            return next(axis for axis in THICK_AXES if axis.lower() == said.lower())
    except (KeyError, ValueError, OverflowError, StopIteration):
        expected = {bool: "true or false", int: "a whole number"}.get(kind, f"one of {', '.join(THICK_AXES)}")
        raise UsageError(f"parameter {name} is {said[:40]!r}; expected {expected}") from None
    return said
