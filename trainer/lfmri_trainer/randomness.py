"""Random numbers that a seed and a name determine, whatever else is drawn and in which order."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lfmri_runtime.errors import InputRefused


def named_generator(seed: int, name: str) -> np.random.Generator:
    """A counter-based generator of its own for what has this name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, key])))


def made_with(record: Path, seed: int) -> bool:
    """Whether what a record belongs to is there already, by its seed.

    Raises:
        InputRefused: another seed made it, or the record is not readable.
    """
    if not record.is_file():
        return False
    try:
        found = json.loads(record.read_text())["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputRefused(f"{record}: {error!r}; expected a record with a seed: delete its folder") from None
    if found != seed:
        raise InputRefused(f"{record} was drawn with the seed {found}; expected {seed}: use it, or another --out")
    return True
