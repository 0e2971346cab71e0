"""Tables on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lfmri_runtime.evaluation import Evaluation


def print_scores(figures: "dict[str, Evaluation]") -> None:
    """Print a table of scores, a row per method, and the rule they were made by."""
    from rich.console import Console

    from lfmri_runtime.evaluation import PLANES, summary_table

    first = next(iter(figures.values()))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(summary_table(figures, title=f"{len(first.rows)} {PLANES[first.axis]} slices"))
    console.print(first.rule, style="dim")


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table; a file gets it wide enough not to break the cells."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None)
    for name in head:
        table.add_column(escape(name))
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
