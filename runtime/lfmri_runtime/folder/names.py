"""Names that are free, and short enough for what is put around them."""

import itertools
import os
from collections.abc import Callable

from lfmri_runtime.folder.items import DICOM_SUFFIX
from lfmri_runtime.volume import SUFFIXES

#: Bytes; file systems hold 255, and temporary names and reasons need some of them.
LONGEST = 200


def split(name: str) -> tuple[str, str]:
    """A name without its image suffix, and the suffix as it is written; empty for other names."""
    suffix = next((known for known in (*SUFFIXES, DICOM_SUFFIX) if name.lower().endswith(known)), "")
    end = len(name) - len(suffix)
    return name[:end], name[end:]


def free_name(name: str, taken: Callable[[str], bool]) -> str:
    """The name itself, or the first of name-2, name-3, ... that is free; too long a name is cut.

    Args:
        name: of a file or folder.
        taken: whether a name is.
    """
    stem, suffix = split(name)
    for number in itertools.count(1):
        ending = suffix if number == 1 else f"-{number}{suffix}"
        candidate = _cut(stem, LONGEST - len(os.fsencode(ending))) + ending
        if not taken(candidate):
            return candidate
    raise AssertionError("the numbers do not end")


def _cut(stem: str, room: int) -> str:
    content = os.fsencode(stem)
    return stem if len(content) <= room else content[:room].decode(errors="ignore")
