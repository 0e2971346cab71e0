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


def made_with(record: Path, *, seed: int, sources: object) -> bool:
    """Whether what a record belongs to is there already, by the seed and the files that made it.

    Args:
        record: JSON with `seed` and `sources`; one without sources is taken as it is.
        seed: of now.
        sources: hashes of now.

    Raises:
        InputRefused: another seed or other files made it, or the record is not readable.
    """
    if not record.is_file():
        return False
    try:
        document = json.loads(record.read_text())
        found, made_from = document["seed"], document.get("sources", sources)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefused(f"{record}: {error!r}; expected a record with a seed: delete its folder") from None
    if found != seed:
        raise InputRefused(f"{record} was drawn with the seed {found}; expected {seed}: use it, or another --out")
    if made_from != sources:
        raise InputRefused(f"{record} was made from other files than these; expected them: delete its folder")
    return True
