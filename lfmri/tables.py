"""Tables on the terminal."""

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
