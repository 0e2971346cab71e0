"""What a model makes of x_t along the path: `python benchmarks/path.py --pairs DIR [--bundle B]`.

Over slices of the validation split, the root mean square error of x_1_hat inside the head at each t, when x_t is the
true one. Beside it what two simple estimates would reach: x_t / t, which is off by source_std (1 - t) / t, and that
mixed with the model's own answer at t = 0, as if their errors were independent. A model that is above the mixture at a
late t has not learned to look at x_t there: its draws of several steps cannot differ where the truth is uncertain.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from lfmri_runtime.backends import open_backend
from lfmri_runtime.bundle import open_bundle
from lfmri_runtime.errors import InputRefused, LfmriError
from lfmri_trainer.dataset import SliceDataset
from lfmri_trainer.flow import SIGNAL
from lfmri_trainer.simulation.pairs import read_pairs
from lfmri_trainer.working import working_pairs

TIMES = (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95)


def main() -> None:
    """Print one line a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, type=Path, help="with the split validation")
    parser.add_argument("--bundle", type=Path, help="the built-in one by default")
    parser.add_argument("--slices", type=int, default=8)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    contract = bundle.contract
    step = open_backend(bundle)
    rows = [row for row in read_pairs(given.pairs) if row.split == "validation"]
    if not rows:
        raise InputRefused(f"{given.pairs}: no pair has the split validation; expected some: hold subjects out")
    slices = SliceDataset(
        working_pairs(given.pairs, rows, contract.processing),
        count=given.slices,
        multiple=contract.processing.multiple,
        source_std=contract.source_std,
        seed=0,
    )
    print("| t | x_1_hat | x_t alone | mixed |\n| --- | --- | --- | --- |")
    first = 0.0
    for t in TIMES:
        errors = []
        for number in range(len(slices)):
            x_0, x_1, y = (slices[number][name][None].numpy() for name in ("x_0", "x_1", "y"))
            x_t = ((1 - t) * x_0 + t * x_1).astype(np.float32)
            x_1_hat = step(x_t, y, t, 1 - t)  # one Euler step to the end of the path
            errors.append(np.square(x_1_hat - x_1)[x_1 > SIGNAL])
        found = float(np.sqrt(np.concatenate(errors).mean()))
        first = first or found
        alone = contract.source_std * (1 - t) / t if t else np.inf
        print(f"| {t:g} | {found:.4f} | {alone:.4f} | {(first**-2 + alone**-2) ** -0.5:.4f} |")


if __name__ == "__main__":
    try:
        main()
    except LfmriError as error:
        sys.exit(f"path.py: {error}")
