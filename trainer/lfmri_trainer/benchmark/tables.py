"""The benchmark's tables: scores and paired differences, as Markdown for people and CSV for programs."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lfmri_runtime.evaluation import COLUMNS, Column, Summary, summary_cell
from lfmri_runtime.evaluation.tables import column_label
from lfmri_runtime.page.article import Table
from lfmri_trainer.baselines.interpolation import Interpolation
from lfmri_trainer.baselines.method import Method
from lfmri_trainer.benchmark.intervals import CONFIDENCE, FloatArray, Interval, Level, choose_level, mean_intervals
from lfmri_trainer.benchmark.run import SetResults


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean paired differences of two methods on one set, by column key."""

    set_name: str
    method: Method
    other: Method
    intervals: Mapping[str, Interval]


def joined(results: SetResults, method: Method, key: str) -> FloatArray:
    """A method's scores on all slices of the set, (slices,)."""
    return np.concatenate([result.scores[key] for result in results.results[method.key]])


def level_of(results: SetResults) -> Level:
    """What the set's intervals are made over."""
    first = next(iter(results.results.values()))
    placed = [
        (scan.pair, int(index)) for scan, result in zip(results.scans, first, strict=True) for index in result.indices
    ]
    return choose_level([pair for pair, _ in placed], [index for _, index in placed])


def differences(results: SetResults, methods: Sequence[Method]) -> list[Difference]:
    """Every method minus interpolation, then the proposed model minus each baseline."""
    labels = level_of(results).labels
    found = []
    for method, other in _compared(methods):
        values = np.stack([joined(results, method, c.key) - joined(results, other, c.key) for c in COLUMNS])
        intervals = dict(zip((c.key for c in COLUMNS), mean_intervals(values, labels), strict=True))
        found.append(Difference(set_name=results.test_set.name, method=method, other=other, intervals=intervals))
    return found


def _compared(methods: Sequence[Method]) -> Iterator[tuple[Method, Method]]:
    start = [method for method in methods if isinstance(method, Interpolation)]
    baselines = [method for method in methods if not method.proposed and method not in start]
    proposed = [method for method in methods if method.proposed]
    yield from ((method, other) for other in start for method in (*baselines, *proposed))
    yield from ((method, other) for other in baselines for method in proposed)


def score_table(results: SetResults, methods: Sequence[Method]) -> Table:
    """Mean and standard deviation over slices, a row a method; the best mean of each column is strong."""
    summaries = {
        method.key: {column.key: _summary(joined(results, method, column.key)) for column in COLUMNS}
        for method in methods
    }
    best = {
        column.key: (max if column.higher_is_better else min)(s[column.key].mean for s in summaries.values())
        for column in COLUMNS
    }
    rows = []
    for method in methods:
        cells = summaries[method.key]
        shown = [(summary_cell(c, cells[c.key]), cells[c.key].mean == best[c.key]) for c in COLUMNS]
        seconds = float(np.mean([result.seconds for result in results.results[method.key]]))
        size = f"{method.parameters:,}" if method.parameters else "-"
        rows.append([(method.title, False), *shown, (size, False), (f"{seconds:.3f}", False), (method.budget, False)])
    head = ["method", *map(column_label, COLUMNS), "parameters", "seconds a slice", "fitted with"]
    return Table(head=tuple(head), rows=tuple(map(tuple, rows)))


def subject_table(results: SetResults, methods: Sequence[Method]) -> Table:
    """Means of interpolation and of the proposed model at its fewest steps, a row a subject."""
    start = next(method for method in methods if isinstance(method, Interpolation))
    model = next(method for method in methods if method.proposed)
    rows = []
    for subject in dict.fromkeys(scan.pair.subject for scan in results.scans):
        chosen = [number for number, scan in enumerate(results.scans) if scan.pair.subject == subject]
        means = [
            {
                c.key: np.mean(np.concatenate([results.results[method.key][n].scores[c.key] for n in chosen]))
                for c in COLUMNS
            }
            for method in (start, model)
        ]
        slices = sum(len(results.results[model.key][n].indices) for n in chosen)
        cells = [" → ".join(f"{mean[c.key]:.{c.decimals}f}" for mean in means) for c in COLUMNS]
        rows.append(tuple((text, False) for text in (subject, str(slices), *cells)))
    return Table(head=("subject", "slices", *map(column_label, COLUMNS)), rows=tuple(rows))


def difference_table(found: Sequence[Difference]) -> Table:
    """Mean difference and interval; strong where the interval excludes zero, [-] where there is none."""
    rows = []
    for difference in found:
        cells = [_interval_cell(column, difference.intervals[column.key]) for column in COLUMNS]
        rows.append(((f"{difference.method.title} - {difference.other.title}", False), *cells))
    return Table(head=("difference", *(column.label for column in COLUMNS)), rows=tuple(rows))


def _interval_cell(column: Column, interval: Interval) -> tuple[str, bool]:
    mean, low, high = (f"{value:+.{column.decimals}f}" for value in (interval.mean, interval.low, interval.high))
    if math.isnan(interval.low):
        return f"{mean} [-]", False
    return f"{mean} [{low}, {high}]", interval.low > 0 or interval.high < 0


def _summary(values: FloatArray) -> Summary:
    if not np.isfinite(values).all():
        return Summary(mean=float("inf"), std=float("nan"))
    return Summary(mean=float(values.mean()), std=float(values.std()))


def markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = [" | ".join(table.head), " | ".join("---" for _ in table.head)]
    for row in table.rows:
        lines.append(" | ".join(f"**{text}**" if strong else text for text, strong in row))
    return "".join(f"| {line} |\n" for line in lines)


def scores_csv(every: Sequence[SetResults], methods: Sequence[Method]) -> str:
    """One line a set, method, pair and slice; numbers with every digit."""
    lines = []
    for results in every:
        for method in methods:
            for scan, result in zip(results.scans, results.results[method.key], strict=True):
                for n, index in enumerate(result.indices):
                    scores = [repr(float(result.scores[column.key][n])) for column in COLUMNS]
                    lines.append([results.test_set.name, method.key, scan.pair.pair, int(index), *scores])
    return csv_text(["set", "method", "pair", "slice", *(column.key for column in COLUMNS)], lines)


def differences_csv(found: Sequence[Difference]) -> str:
    """One line a difference and score: mean and bounds with every digit."""
    lines = [
        [d.set_name, d.method.key, d.other.key, key, repr(i.mean), repr(i.low), repr(i.high)]
        for d in found
        for key, i in d.intervals.items()
    ]
    return csv_text(["set", "method", "minus", "score", "mean", f"low_{CONFIDENCE}", f"high_{CONFIDENCE}"], lines)


def csv_text(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Lines below their head, as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()
