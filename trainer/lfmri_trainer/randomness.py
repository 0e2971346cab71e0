"""Random numbers that a seed and a name determine, whatever else is drawn and in which order."""

import hashlib

import numpy as np


def named_generator(seed: int, name: str) -> np.random.Generator:
    """A counter-based generator of its own for what has this name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, key])))
