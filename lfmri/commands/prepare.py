"""`lfmri prepare`."""

from pathlib import Path

import click

from lfmri.extras import require
from lfmri.progress import progress_bar


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the training set.")
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Subjects worked on at the same time."
)
def prepare(recipe: Path, out: Path, workers: int) -> None:
    """Make a training set as a RECIPE says: subjects from label maps, varied copies, and the pairs of all of them.

    Run again with the same recipe, it goes on where it stopped.
    """
    module = require("lfmri_trainer.recipe", extra="train")
    pairs = module.prepare(recipe, out, workers=workers, stage=progress_bar)
    click.echo(f"{len(pairs)} pairs of {len({pair.subject for pair in pairs})} subjects in {out / module.PAIRS}")
