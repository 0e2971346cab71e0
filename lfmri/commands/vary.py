"""`lfmri vary`."""

from pathlib import Path

import click

from lfmri.extras import require
from lfmri.options import subjects_option
from lfmri.progress import progress_bar


@click.command()
@subjects_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the copies.")
@click.option("--copies", default=1, show_default=True, type=click.IntRange(min=1), help="Copies of each subject.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of every draw.")
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Copies made at the same time."
)
def vary(subjects: Path, out: Path, **options: int) -> None:
    """Make varied copies of subjects, for `lfmri simulate`: bent, mirrored, in other contrast, with air around.

    A copy stays with its original: hold out one, and both are. Run again, it goes on where it stopped.
    """
    module = require("lfmri_trainer.variation", extra="train")
    with progress_bar("varying") as progress:
        names = module.vary_folder(subjects, out, progress=progress, **options)
    click.echo(f"{len(names)} copies in {out}")
