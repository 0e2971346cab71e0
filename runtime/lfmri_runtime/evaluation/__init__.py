"""Scores of enhanced volumes against their references: `scores` computes them, `tables` writes and shows them."""

from lfmri_runtime.evaluation.scores import COLUMNS, PLANES, RULE, Column, Evaluation, Row, Summary, evaluate
from lfmri_runtime.evaluation.tables import summary_cell, summary_table, write_csv, write_json

__all__ = [
    "COLUMNS",
    "PLANES",
    "RULE",
    "Column",
    "Evaluation",
    "Row",
    "Summary",
    "evaluate",
    "summary_cell",
    "summary_table",
    "write_csv",
    "write_json",
]
