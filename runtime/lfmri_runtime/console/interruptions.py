"""How many processes ended while they worked on something, as bytes of a file beside it.

Each process adds a byte and takes it away again, unless it is torn from the work.
"""

import os
from contextlib import suppress
from pathlib import Path

#: What took the process down so often is not tried again: memory, as a rule.
MOST = 5
GIVEN_UP = f"{MOST} processes ended while they worked on it; out of memory?"


def worn_out(marks: Path) -> bool:
    """Whether too many processes have ended at this work."""
    return marks.exists() and marks.stat().st_size >= MOST


def begin(marks: Path) -> None:
    """Note that this process begins."""
    with marks.open("ab") as stream:
        stream.write(b".")


def end(marks: Path) -> None:
    """The work has ended and the process lives; its marks may have moved on with it."""
    with suppress(OSError):
        left = marks.stat().st_size - 1
        os.truncate(marks, left) if left else marks.unlink()
