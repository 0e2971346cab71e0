"""`lfmri synthesise`."""

from pathlib import Path

import click

from lfmri.extras import require
from lfmri.progress import progress_bar


@click.command()
@click.option(
    "--labels",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of whole-head label maps: FreeSurfer's numbers, 502 to 530 outside the brain.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of subjects.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of every draw.")
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Subjects synthesised at the same time."
)
def synthesise(labels: Path, out: Path, **options: int) -> None:
    """Make T1w subjects from label maps, for `lfmri simulate`.

    Run again, it goes on where it stopped.
    """
    module = require("lfmri_trainer.synthesis.folder", extra="train")
    with progress_bar("synthesising") as progress:
        names = module.synthesise_folder(labels, out, progress=progress, **options)
    click.echo(f"{len(names)} subjects in {out}")
