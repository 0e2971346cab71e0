"""Several methods' scores side by side: a CSV file, a JSON file, a table for the terminal.

All take evaluations by method name ("interpolation", "enhanced", ...), in the order in which they are shown.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lfmri_runtime import files
from lfmri_runtime.errors import UsageError
from lfmri_runtime.evaluation.scores import COLUMNS, PLANES, Column, Evaluation, Summary

if TYPE_CHECKING:
    from rich.table import Table


def write_csv(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write one line per method and slice, whole or not at all.

    The columns are `method`, `slice` and the keys of `COLUMNS` that the evaluations have; numbers carry every digit,
    and the PSNR of equal slices is `inf`.

    Args:
        path: The file to write.
        evaluations: By method name; at least one, all judged on the same slices with the same settings.

    Raises:
        UsageError: There is none, or they cannot stand side by side.
        TryAgainLater: As `files.atomic_write`.
    """
    keys = [column.key for column in shared_columns(evaluations)]
    with files.atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["method", "slice", *keys])
        for method, evaluation in evaluations.items():
            for row in evaluation.rows:
                writer.writerow([method, row.index, *(repr(row.scores[key]) for key in keys)])


def write_json(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write the rule, the settings, and each method's summary and slices, whole or not at all.

    JSON has no infinity: a number that is not finite is written as the string "inf" or "nan".

    Args:
        path: The file to write.
        evaluations: By method name; at least one, all judged on the same slices with the same settings.

    Raises:
        UsageError: There is none, or they cannot stand side by side.
        TryAgainLater: As `files.write_json`.
    """
    shared_columns(evaluations)
    first = next(iter(evaluations.values()))
    content = {
        "rule": first.rule,
        "axis": first.axis,
        "plane": PLANES[first.axis],
        "data_range": first.data_range,
        "lpips": first.lpips,
        "masked": first.masked,
        "methods": {method: _as_json(evaluation) for method, evaluation in evaluations.items()},
    }
    files.write_json(path, content)


def _as_json(evaluation: Evaluation) -> dict[str, object]:
    summary = {
        key: {"mean": _number(value.mean), "std": _number(value.std)} for key, value in evaluation.summary.items()
    }
    slices = [
        {"slice": row.index, **{key: _number(value) for key, value in row.scores.items()}} for row in evaluation.rows
    ]
    return {"summary": summary, "slices": slices}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def summary_table(evaluations: Mapping[str, Evaluation], *, title: str = "") -> "Table":
    """Make a table for the terminal: a row per method, mean and standard deviation per column.

    Args:
        evaluations: By method name; at least one, all judged on the same slices with the same settings.
        title: A line above the table; the caption says how many slices of which plane were judged.

    Raises:
        UsageError: There is none, or they cannot stand side by side.
    """
    from rich.table import Table
    from rich.text import Text

    columns = shared_columns(evaluations)
    first = next(iter(evaluations.values()))
    caption = f"mean \N{PLUS-MINUS SIGN} standard deviation over {len(first.rows)} {PLANES[first.axis]} slices"
    table = Table(title=Text(title) if title else None, caption=caption)
    table.add_column("method")
    for column in columns:
        table.add_column(column_label(column), justify="right")
    for method, evaluation in evaluations.items():
        table.add_row(Text(method), *(summary_cell(column, evaluation.summary[column.key]) for column in columns))
    return table


def column_label(column: Column) -> str:
    """Return the label with an arrow that points where better is."""
    arrow = "\N{UPWARDS ARROW}" if column.higher_is_better else "\N{DOWNWARDS ARROW}"
    return f"{column.label} {arrow}"


def summary_cell(column: Column, summary: Summary) -> str:
    """Return mean and deviation with the column's decimals; no deviation where it does not exist."""
    mean = f"{summary.mean:.{column.decimals}f}"
    if math.isnan(summary.std):
        return mean
    return f"{mean} \N{PLUS-MINUS SIGN} {summary.std:.{column.decimals}f}"


def shared_columns(evaluations: Mapping[str, Evaluation]) -> list[Column]:
    """Return the columns that every evaluation has, in the order of COLUMNS.

    Raises:
        UsageError: There is no evaluation, or two were judged on other slices or with other settings.
    """
    if not evaluations:
        raise UsageError("no evaluation was given; a table needs at least one method")
    settings = {method: _settings(evaluation) for method, evaluation in evaluations.items()}
    first = next(iter(settings))
    for method, setting in settings.items():
        if setting != settings[first]:
            raise UsageError(
                f"{method} and {first} were not judged alike (axis, data range, mask, LPIPS, slices, rule); "
                "evaluate both with the same options and reference"
            )
    return [column for column in COLUMNS if column.key in evaluations[first].summary]


def _settings(evaluation: Evaluation) -> tuple[object, ...]:
    indices = tuple(row.index for row in evaluation.rows)
    return (
        evaluation.axis,
        evaluation.data_range,
        evaluation.lpips,
        evaluation.masked,
        evaluation.rule,
        tuple(evaluation.summary),
        indices,
    )
