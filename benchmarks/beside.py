"""Models that were benchmarked apart, side by side.

    python benchmarks/beside.py NAME=DIR NAME=DIR ... [--against METHOD]

Each DIR is the --out of a `lfmri benchmark` on the same pairs. Prints the mean scores, those of a baseline once; then
mean paired differences: each model at each number of Euler steps minus the baseline that --against names, and the first
model minus each other one. From five people on each has its 95 % interval, people drawn anew; fewer say too little.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfmri_runtime.errors import InputRefused, LfmriError
from lfmri_runtime.evaluation import COLUMNS
from lfmri_trainer.baselines.flow import Flow
from lfmri_trainer.benchmark.intervals import LEAST_CLUSTERS, mean_intervals
from lfmri_trainer.subjects import person_of

#: Set and method to the slices, as pair and index, and their scores, (columns, slices).
Scores = dict[tuple[str, str], tuple[list[tuple[str, str]], NDArray[np.float64]]]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--against", metavar="METHOD", help="key of a baseline, such as regression")
    given = parser.parse_args()
    named = (text.partition("=") for text in given.folders)
    models = {name: read(Path(folder) / "scores.csv") for name, _, folder in named}
    for title, lines in (("method", means(models)), ("difference", differences(models, given.against))):
        print(f"| set | {title} | {' | '.join(c.label for c in COLUMNS)} |\n|{' --- |' * (2 + len(COLUMNS))}")
        print("\n".join(sorted(lines)) + "\n")


def read(path: Path) -> Scores:
    """The scores of one benchmark."""
    if not path.is_file():
        raise InputRefused(f"{path} not found; expected NAME=DIR with the --out of a `lfmri benchmark`")
    slices: dict[tuple[str, str], list[tuple[str, str]]] = {}
    scores: dict[tuple[str, str], list[list[float]]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            key = row["set"], row["method"]
            slices.setdefault(key, []).append((row["pair"], row["slice"]))
            scores.setdefault(key, []).append([float(row[column.key]) for column in COLUMNS])
    return {key: (slices[key], np.array(scores[key]).T) for key in slices}


def means(models: dict[str, Scores]) -> set[str]:
    """A line for each method of each model; what they have in common gives one."""
    lines = set()
    for name, scores in models.items():
        for (set_name, method), (_, values) in scores.items():
            title = f"{name}, {method}" if proposed(method) else method
            cells = (f"{mean:.{c.decimals}f}" for c, mean in zip(COLUMNS, values.mean(axis=1), strict=True))
            lines.add(f"| {set_name} | {title} | {' | '.join(cells)} |")
    return lines


def differences(models: dict[str, Scores], against: str | None) -> Iterator[str]:
    """A line for each comparison."""
    (first, one), *others = models.items()
    for name, scores in models.items():
        for set_name, method in (key for key in scores if proposed(key[1])):
            if (set_name, against) in scores:
                yield line(set_name, f"{name}, {method} - {against}", scores, method, scores, str(against))
    for name, other in others:
        for set_name, method in (key for key in one if key in other and proposed(key[1])):
            yield line(set_name, f"{first} - {name}, {method}", one, method, other, method)


def proposed(method: str) -> bool:
    """Whether it is a model's key, and no baseline's."""
    return method.startswith(f"{Flow.key}-")


def line(set_name: str, title: str, one: Scores, method: str, other: Scores, minus: str) -> str:
    """Mean and interval of each score."""
    (slices, values), (same, subtracted) = one[set_name, method], other[set_name, minus]
    if slices != same:
        raise InputRefused(f"{title}: scored on other slices; expected benchmarks of the same pairs and options")
    people = [person_of(pair.rsplit("_", 2)[0]) for pair, _ in slices]
    found = zip(COLUMNS, mean_intervals(values - subtracted, people), strict=True)
    cells = [
        f"{i.mean:+.{c.decimals}f}"
        + (f" [{i.low:+.{c.decimals}f}, {i.high:+.{c.decimals}f}]" if len(set(people)) >= LEAST_CLUSTERS else "")
        for c, i in found
    ]
    return f"| {set_name} | {title} | {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main()
    except LfmriError as error:
        sys.exit(f"beside.py: {error}")
